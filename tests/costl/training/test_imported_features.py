"""From published features to metrics: the temporal module learns from frames that have no patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published_world import JOINT, publish_world

from costl.config import load_config
from costl.data.batch import evaluation_batches
from costl.data.splits import read_queries
from costl.evaluate import evaluate
from costl.experiments.references import ZeroShot, chance, zero_shot
from costl.model.build import build_for
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.published.import_features import import_features
from costl.train import train

SETTINGS = """\
train:
  model: {width: 32, heads: 2}
  temporal: {layers: 1}
  train: {epochs: 10, warmup_steps: 5, batch_size: 8, learning_rate: 0.003, threads: 1}
"""


def imported(folder: Path, joint: str | None) -> CacheReader:
    published = publish_world(folder)
    (published.annotations / "costl.yaml").write_text(SETTINGS, encoding="utf-8")
    return CacheReader(import_features(**published.arguments(), out=folder / "feats.h5", joint=joint).cache)


@pytest.mark.parametrize("joint", [None, "clip"])
def test_a_model_learns_from_published_features_clearly_above_chance(tmp_path, joint):
    features = imported(tmp_path, joint)
    run = train(features.path, out=tmp_path / "run", device="cpu").run
    found, by_chance = evaluate(run, split="test", device="cpu").metrics["brief"], chance(features, "test").brief
    # In a joint space the answer lies open; without it the things must be learned from forty videos.
    factor = 2 if joint is None else 4
    assert found["MR-full-R1@0.5"] > factor * by_chance["MR-full-R1@0.5"]


def test_the_spatial_encoder_is_refused_where_there_are_no_patches_and_leaves_no_run(tmp_path):
    features = imported(tmp_path, None)
    with pytest.raises(UsageError, match=r"spatial.steps is 2, but the frames in .*feats.h5 have no patches"):
        train(features.path, overrides=["spatial.steps=2"], out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_zero_shot_clip_is_refused_without_a_joint_space_and_works_with_one(tmp_path):
    with pytest.raises(UsageError, match="there is no zero-shot CLIP"):
        zero_shot(imported(tmp_path / "unknown", None), "test", ZeroShot())
    features = imported(tmp_path / "known", "clip")
    assert zero_shot(features, "test", ZeroShot(0.0, (0.5,))).brief["MR-full-R1@0.5"] > 90


@pytest.mark.parametrize("joint", [None, "clip"])
def test_the_similarity_the_model_sees_is_the_centred_cosine_or_nothing(tmp_path, joint):
    features = imported(tmp_path, joint)
    model = build_for(load_config(features.settings), features)
    (batch,) = evaluation_batches(read_queries(features, "val")[:1], features, batch_size=4, patches=False)
    frame = model._clip_similarity(batch.tokens, batch.frame_mask, batch.video, batch.sentence)
    assert "joint_normed" not in model.state_dict()
    query = batch.queries[0]
    frames = np.asarray(features.tokens(query.vid)[:, 0, -JOINT:], np.float32)
    cosine = frames @ features.words(query.query).sentence / np.linalg.norm(frames, axis=1)
    expected = 100 * (cosine - cosine.mean()) if joint else np.zeros(len(frames))
    torch.testing.assert_close(frame[0], torch.tensor(expected, dtype=torch.float32), atol=1e-3, rtol=1e-4)

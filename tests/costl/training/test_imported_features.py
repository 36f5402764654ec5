"""Training on published features: the temporal module learns from frames without patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published_world import CLIP_WIDTH, publish_world

from costl.config import Config
from costl.data.batch import model_inputs
from costl.data.queries import read_queries
from costl.evaluate import evaluate
from costl.experiments.untrained_baselines import chance, untrained_baselines
from costl.model.clip_similarity import clip_similarity
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


def import_world(folder: Path, joint: str | None) -> CacheReader:
    published = publish_world(folder)
    (published.annotations / "costl.yaml").write_text(SETTINGS, encoding="utf-8")
    return CacheReader(import_features(**published.arguments(), out=folder / "feats.h5", joint=joint).cache)


@pytest.mark.parametrize("joint", [None, "clip"])
def test_a_model_learns_from_published_features_clearly_above_chance(tmp_path, joint):
    features = import_world(tmp_path, joint)
    run = train(features.path, out=tmp_path / "run", device="cpu").run
    metrics = evaluate(run, split="test", device="cpu").metrics["brief"]
    chance_metrics = chance(features, "test", Config())
    # With a joint space the task is easy. Without it, the model must learn the objects from forty videos.
    factor = 2 if joint is None else 4
    assert metrics["MR-full-R1@0.5"] > factor * chance_metrics["MR-full-R1@0.5"]


def test_the_spatial_encoder_is_refused_for_features_without_patches(tmp_path):
    features = import_world(tmp_path, None)
    with pytest.raises(UsageError, match=r"spatial.steps is 2, but the frames in .*feats.h5 have no patches"):
        train(features.path, overrides=["spatial.steps=2"], out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_zero_shot_clip_needs_a_joint_space(tmp_path):
    unknown = import_world(tmp_path / "unknown", None)
    assert list(untrained_baselines(unknown, ["test"], Config())[0]) == ["chance"]
    features = import_world(tmp_path / "known", "clip")
    assert untrained_baselines(features, ["test"], Config())[0]["zero-shot CLIP"]["test"][0]["MR-full-R1@0.5"] > 60


@pytest.mark.parametrize("joint", [None, "clip"])
def test_the_clip_similarity_is_the_centred_cosine_or_zero(tmp_path, joint):
    features = import_world(tmp_path, joint)
    query = read_queries(features, "val")[0]
    inputs = model_inputs([query], features, patches=False)
    similarity = clip_similarity(inputs, torch.tensor(features.joint.logit_scale))
    frames = np.asarray(features.tokens(query.vid)[:, 0, -CLIP_WIDTH:], np.float32)
    cosine = frames @ features.words(query.query).sentence / np.linalg.norm(frames, axis=1)
    expected = 100 * (cosine - cosine.mean()) if joint else np.zeros(len(frames))
    torch.testing.assert_close(similarity[0], torch.tensor(expected, dtype=torch.float32), atol=1e-2, rtol=1e-4)

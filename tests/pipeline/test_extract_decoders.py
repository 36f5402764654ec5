"""Extraction with every decoder, sampling and resize: which features are equal, and which caches refuse each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.feature_store import FeatureStore


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_clip_weights(folder / "clip")
    (folder / "videos").mkdir()
    make_video(folder / "videos" / "a.mp4", frame_times(150), size=(96, 128), options={"g": "30"})
    row = {"qid": 1, "query": "a dog", "vid": "a", "duration": 6.0}
    (folder / "videos" / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


def run(world: Path, out: Path, **options) -> CacheReader:
    report = extract(
        world / "videos", out=out, weights=str(world / "clip"), fps=2.0, device="cpu", workers=1, **options
    )
    assert report.exit_code == 0
    return CacheReader(out)


@pytest.mark.parametrize("sampling", ["centre", "cheapest"])
def test_software_decoders_give_equal_tokens_and_can_share_a_cache(world, tmp_path, sampling):
    first = run(world, tmp_path / "a.h5", sampling=sampling)
    second = run(world, tmp_path / "b.h5", sampling=sampling, decoder="pyav")
    assert np.array_equal(first.tokens("a"), second.tokens("a"))
    assert np.array_equal(first.times_s("a"), second.times_s("a"))
    again = extract(
        world / "videos",
        out=tmp_path / "a.h5",
        weights=str(world / "clip"),
        fps=2.0,
        device="cpu",
        sampling=sampling,
        decoder="auto",
    )
    assert again.skipped == ("a",)


def test_another_sampling_or_resize_is_refused_by_name(world, tmp_path):
    run(world, tmp_path / "a.h5")
    with pytest.raises(CacheError, match="sampling: cache has centre, asked for cheapest"):
        run(world, tmp_path / "a.h5", sampling="cheapest")
    with pytest.raises(CacheError, match="resize: cache has device, asked for decoder"):
        run(world, tmp_path / "a.h5", resize="decoder")
    for wrong in ({"sampling": "cheap"}, {"resize": "gpu"}, {"decoder": "opencv"}):
        with pytest.raises(UsageError, match="expected "):
            run(world, tmp_path / "b.h5", **wrong)


@pytest.mark.parametrize("options", [{"sampling": "cheapest"}, {"resize": "decoder", "decoder": "pyav"}])
def test_the_feature_store_gives_the_features_of_the_cache(world, tmp_path, options):
    cache = run(world, tmp_path / "a.h5", **options)
    store = FeatureStore(
        folder=tmp_path / "store",
        fingerprint=cache.fingerprint,
        model="ViT-B-32",
        weights=str(world / "clip"),
        device="cpu",
        owner="this run",
        workers=1,
    )
    features, name = store.features(world / "videos" / "a.mp4", ["a dog"])
    assert np.array_equal(features.tokens(name), cache.tokens("a"))


def test_a_settings_file_can_set_sampling_and_decoder(world, tmp_path):
    shutil.copytree(world / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "costl.yaml").write_text("extract:\n  sampling: cheapest\n  decoder: pyav\n")
    extract(tmp_path / "videos", out=tmp_path / "a.h5", weights=str(world / "clip"), device="cpu", workers=1)
    assert CacheReader(tmp_path / "a.h5").fingerprint["sampling"] == "cheapest"

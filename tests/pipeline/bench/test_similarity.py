"""Extraction with every decoder, sampling and resize: which features are equal, and by how much others differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.pipeline.bench.similarity import measure_similarity
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.feature_store import FeatureStore
from costl.pipeline.world.write_world import TINY_CLIP

REAL_VIDEOS = Path(__file__).parents[3] / "../shared/data/videos"


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
        with pytest.raises(UsageError, match="expected one of"):
            run(world, tmp_path / "b.h5", **wrong)


@pytest.mark.parametrize("options", [{"sampling": "cheapest"}, {"resize": "decoder", "decoder": "pyav"}])
def test_the_feature_store_gives_the_features_of_the_cache(world, tmp_path, options):
    cache = run(world, tmp_path / "a.h5", **options)
    store = FeatureStore(
        tmp_path / "store",
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


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_frames_scaled_by_the_decoder_change_tokens_by_a_few_percent(decoder):
    videos = [REAL_VIDEOS / name for name in ("vid1.mp4", "nasa_13013.mp4", "flipping_a_pancake.mkv")]
    if not all(path.exists() for path in videos):
        pytest.skip(f"no real videos in {REAL_VIDEOS}")
    encoder = load_encoder("ViT-B-32", str(TINY_CLIP))
    cheapest, scaled, both = measure_similarity(videos, encoder, fps=1.0, decoder=decoder)
    assert 0 < scaled.error < 0.06 and scaled.cosine > 0.99 and scaled.shift_s == 0
    assert 0 < cheapest.shift_s < 1.0 and cheapest.cosine > 0.8
    assert both.shift_s == cheapest.shift_s

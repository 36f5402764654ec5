"""Where features of single videos are kept, and how a cache remembers by which weights its CLIP can be loaded again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline import feature_store as kept
from costl.pipeline.cache.index import seen_from, told_from
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, VideoError
from costl.pipeline.feature_store import Kept, user_folder


@pytest.mark.parametrize("weights", ["openai", "no/such/place", "laion2b_s34b_b79k"])
def test_a_tag_stays_what_it_is(tmp_path, weights):
    assert told_from(tmp_path, weights) == weights == seen_from(tmp_path, weights)


@pytest.mark.parametrize("prefix", ["", "openai=", "local-dir:"])
def test_weights_are_found_again_when_cache_and_weights_move_together(tmp_path, prefix):
    (tmp_path / "a" / "clip").mkdir(parents=True)
    told = told_from(tmp_path / "a" / "deep", f"{prefix}{tmp_path / 'a' / 'clip'}")
    assert str(tmp_path) not in told
    moved = Path(shutil.move(tmp_path / "a", tmp_path / "b"))
    found = seen_from(moved / "deep", told).rpartition("=")[2]
    assert Path(found) == moved / "clip" and Path(found).is_dir()


@pytest.mark.parametrize(
    ("platform", "variable", "ends"),
    [
        ("linux", "XDG_CACHE_HOME", "place/costl"),
        ("linux", "", ".cache/costl"),
        ("darwin", "", "Library/Caches/costl"),
        ("win32", "LOCALAPPDATA", "place/costl/Cache"),
    ],
)
def test_the_users_cache_is_where_the_platform_has_it(tmp_path, monkeypatch, platform, variable, ends):
    monkeypatch.setattr("sys.platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "place"))
    assert user_folder().as_posix().endswith(ends)


def test_features_of_unknown_making_cannot_be_made_again(tmp_path):
    with pytest.raises(CacheError, match="my model was trained on features that were not made here"):
        Kept(tmp_path, fingerprint={"fps": 1.0}, model="m", weights="w", device="cpu", owner="my model")


def test_a_video_that_becomes_another_while_it_is_asked_about_is_refused_and_then_known_as_what_it_is(
    world, tmp_path, monkeypatch
):
    features, load = CacheReader(world.cache), kept.load_clip
    video = Path(shutil.copy(world.videos / "test_0000.mp4", tmp_path / "mine.mp4"))

    def meanwhile(*arguments, **options):
        shutil.copy(world.videos / "val_0000.mp4", video)
        return load(*arguments, **options)

    monkeypatch.setattr(kept, "load_clip", meanwhile)
    weights = str(world.videos / "clip")
    place = Kept(
        tmp_path / "kept",
        fingerprint=features.fingerprint,
        model="ViT-B-32",
        weights=weights,
        device="cpu",
        owner="m",
        workers=1,
    )
    with pytest.raises(VideoError, match=r"mine\.mp4: was changed while it was read\. Ask again\."):
        place.features(video, ["a query"])
    found, name = place.features(video, ["a query"])
    np.testing.assert_allclose(
        found.tokens(name).astype(np.float32), features.tokens("val_0000").astype(np.float32), atol=4e-3
    )

"""The store of features of single videos, and the path under which a cache finds the weights of its CLIP again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.cache.index import absolute_weights, relative_weights
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode import reload
from costl.pipeline.errors import CacheError, VideoError
from costl.pipeline.feature_store import FeatureStore, user_folder


@pytest.mark.parametrize("weights", ["openai", "no/such/place", "laion2b_s34b_b79k"])
def test_a_weights_tag_is_stored_unchanged(tmp_path, weights):
    assert relative_weights(tmp_path, weights) == weights == absolute_weights(tmp_path, weights)


@pytest.mark.parametrize("prefix", ["", "openai=", "local-dir:"])
def test_weights_are_found_again_when_cache_and_weights_move_together(tmp_path, prefix):
    (tmp_path / "a" / "clip").mkdir(parents=True)
    stored = relative_weights(tmp_path / "a" / "deep", f"{prefix}{tmp_path / 'a' / 'clip'}")
    assert str(tmp_path) not in stored
    moved = Path(shutil.move(tmp_path / "a", tmp_path / "b"))
    restored = absolute_weights(moved / "deep", stored).rpartition("=")[2]
    assert Path(restored) == moved / "clip" and Path(restored).is_dir()


@pytest.mark.parametrize(
    ("platform", "variable", "ends"),
    [
        ("linux", "XDG_CACHE_HOME", "place/costl"),
        ("linux", "", ".cache/costl"),
        ("darwin", "", "Library/Caches/costl"),
        ("win32", "LOCALAPPDATA", "place/costl/Cache"),
    ],
)
def test_the_user_folder_is_that_of_the_platform(tmp_path, monkeypatch, platform, variable, ends):
    monkeypatch.setattr("sys.platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "place"))
    assert user_folder().as_posix().endswith(ends)


def test_a_store_refuses_features_that_were_imported(tmp_path):
    with pytest.raises(CacheError, match="my model was trained on features that were not made here"):
        FeatureStore(folder=tmp_path, fingerprint={"fps": 1.0}, model="m", weights="w", device="cpu", owner="my model")


def test_a_video_replaced_while_it_is_read_is_refused_and_then_accepted(
    world, tmp_path, monkeypatch
):
    features = CacheReader(world.cache)
    load = reload.load_encoder
    video = Path(shutil.copy(world.videos / "test_0000.mp4", tmp_path / "mine.mp4"))

    def load_and_replace_the_video(*arguments, **options):
        shutil.copy(world.videos / "val_0000.mp4", video)
        return load(*arguments, **options)

    monkeypatch.setattr(reload, "load_encoder", load_and_replace_the_video)
    weights = str(world.videos / "clip")
    store = FeatureStore(
        folder=tmp_path / "store",
        fingerprint={**features.fingerprint, "layers": 2},  # of a cache of version 0.1
        model="ViT-B-32",
        weights=weights,
        device="cpu",
        owner="m",
        workers=1,
    )
    with pytest.raises(VideoError, match=r"mine\.mp4: was changed while it was read\. Ask again\."):
        store.features(video, ["a query"])
    stored, name = store.features(video, ["a query"])
    np.testing.assert_allclose(
        stored.tokens(name).astype(np.float32), features.tokens("val_0000").astype(np.float32), atol=4e-3
    )

"""The store of features of single videos, and the path under which a cache finds the weights of its CLIP again."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.cache.index import absolute_weights, relative_weights
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode import clip
from costl.pipeline.errors import CacheError, VideoError
from costl.pipeline.feature_store import FeatureStore, user_folder
from costl.pipeline.progress import Progress


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


@pytest.fixture
def store(world, tmp_path) -> FeatureStore:
    return FeatureStore(
        folder=tmp_path / "store",
        fingerprint={**CacheReader(world.cache).fingerprint, "layers": 2},  # of a cache of version 0.1
        model="ViT-B-32",
        weights=str(world.videos / "clip"),
        device="cpu",
        owner="m",
        workers=1,
    )


@pytest.mark.parametrize("query", ["a query", "another query"], ids=["stored query", "new query"])
def test_a_stored_video_does_not_wait_for_the_extraction_of_another(world, store, query):
    store.features(world.videos / "val_0000.mp4", ["a query"])
    stages, finished = [], []

    def ask_about_others(progress: Progress) -> None:
        """While the first video is extracted: waits for a stored one, and sees that a third one waits."""
        if progress.stage == "frames" and not finished:
            with ThreadPoolExecutor() as pool:
                finished.append(pool.submit(store.features, world.videos / "val_0000.mp4", [query]).result(60)[1])
            threads.append(threading.Thread(target=store.features, args=(third, ["a query"]), kwargs={"progress": note}))
            threads[0].start()
            assert waits.wait(60)

    def note(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == "wait":
            waits.set()

    third, waits, threads = world.videos / "test_0001.mp4", threading.Event(), []
    _, name = store.features(world.videos / "test_0000.mp4", ["a query"], progress=ask_about_others)
    threads[0].join()
    assert (finished, name) == (["val_0000"], "test_0000")
    assert stages.index("wait") < stages.index("frames")


@pytest.mark.parametrize("stage", ["words", "frames", "videos"])
def test_an_extraction_can_be_stopped_and_begun_again(world, store, stage):
    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise StoppedError

    video = world.videos / "test_0000.mp4"
    before = multiprocessing.active_children()
    with pytest.raises(StoppedError):
        store.features(video, ["a query"], progress=stop)
    assert not [child for child in multiprocessing.active_children() if child not in before]
    features, name = store.features(video, ["a query"])
    assert len(features.tokens(name)) == 12


def test_a_video_replaced_while_it_is_read_is_refused_and_then_accepted(world, store, tmp_path, monkeypatch):
    features = CacheReader(world.cache)
    load = clip.load_encoder
    video = Path(shutil.copy(world.videos / "test_0000.mp4", tmp_path / "mine.mp4"))

    def load_and_replace_the_video(*arguments, **options):
        shutil.copy(world.videos / "val_0000.mp4", video)
        return load(*arguments, **options)

    monkeypatch.setattr(clip, "load_encoder", load_and_replace_the_video)
    with pytest.raises(VideoError, match=r"mine\.mp4: was changed while it was read\. Ask again\."):
        store.features(video, ["a query"])
    stored, name = store.features(video, ["a query"])
    np.testing.assert_allclose(
        stored.tokens(name).astype(np.float32), features.tokens("val_0000").astype(np.float32), atol=4e-3
    )

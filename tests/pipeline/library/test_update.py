"""The index of a folder of videos: every change is noticed, and nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.feature_store import user_folder
from costl.pipeline.library import update
from costl.pipeline.library.folder import CACHE, index_folder, read_files
from costl.pipeline.library.text import load_text_encoder
from costl.pipeline.library.update import LibraryFiles, read_library, update_library
from costl.pipeline.videos import list_videos


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    """A user's cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def clip(world) -> Path:
    return world.videos / "clip"


@pytest.fixture(scope="module")
def new(tmp_path_factory, clip) -> tuple[Path, LibraryFiles]:
    """Three videos of different content in nested folders with unusual names, what is no video, and the first update."""
    folder = tmp_path_factory.mktemp("library") / "videos"
    for number, name in enumerate(["a.mp4", "2026/été ☀/a.mp4", "2026/b; c.MKV"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(folder / name, frame_times(20, fps=5), size=(48, 64 + 32 * number))
    for name in (".hidden/x.mp4", "$RECYCLE.BIN/x.mp4", "._a.mp4", "notes.txt", "b.mp4.part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no video")
    return folder, update_library(folder, index_folder(folder), device="cpu", workers=1, weights=str(clip))


@pytest.fixture
def videos(new, tmp_path) -> Path:
    """A copy of the folder with its index."""
    return shutil.copytree(new[0], tmp_path / "videos")


@pytest.fixture
def refresh(videos, clip) -> Callable[..., LibraryFiles]:
    """Brings the index up to date, in this process."""

    def call(**options) -> LibraryFiles:
        return update_library(videos, index_folder(videos), device="cpu", workers=1, **{"weights": str(clip)} | options)

    return call


def vectors(videos: Path, name: str) -> np.ndarray:
    content = read_files(index_folder(videos))[name].content
    return CacheReader(index_folder(videos) / CACHE).joint_vectors(content)


def test_a_new_folder_is_indexed(new, clip):
    videos, files = new
    assert list(files.files) == ["2026/b; c.MKV", "2026/été ☀/a.mp4", "a.mp4"] and files.failed == {}
    assert sorted(files.done) == list(files.files)
    assert not files.changed and not files.moved and not files.gone
    assert vectors(videos, "a.mp4").shape == (2, load_encoder("ViT-B-32", str(clip)).joint.width)
    assert not np.allclose(vectors(videos, "a.mp4"), vectors(videos, "2026/été ☀/a.mp4"))
    assert {path.name for path in videos.iterdir()} >= {".costl", "a.mp4", "2026"}


def test_an_unchanged_folder_is_neither_read_nor_written(videos, refresh, monkeypatch):
    refresh()
    before = {path: path.stat().st_mtime_ns for path in (videos / ".costl").rglob("*")}
    monkeypatch.setattr("costl.pipeline.library.folder.content_hash", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr("costl.pipeline.encode.clip.load_encoder", lambda *_, **__: pytest.fail("CLIP was loaded"))
    assert refresh().done == ()
    assert {path: path.stat().st_mtime_ns for path in (videos / ".costl").rglob("*")} == before


def rename(folder: Path) -> None:
    (folder / "a.mp4").rename(folder / "z.mp4")


def move(folder: Path) -> None:
    (folder / "a.mp4").rename(folder / "2026" / "a.mp4")


def copy(folder: Path) -> None:
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")


def delete(folder: Path) -> None:
    (folder / "a.mp4").unlink()


def swap(folder: Path) -> None:
    (folder / "a.mp4").rename(folder / "x.mp4")
    (folder / "2026/été ☀/a.mp4").rename(folder / "a.mp4")
    (folder / "x.mp4").rename(folder / "2026/été ☀/a.mp4")


@pytest.mark.parametrize(
    ("change", "moved", "changed", "gone"),
    [
        (rename, ["z.mp4"], [], ["a.mp4"]),
        (move, ["2026/a.mp4"], [], ["a.mp4"]),
        (copy, ["copy.mp4"], [], []),
        (delete, [], [], ["a.mp4"]),
        (swap, [], ["2026/été ☀/a.mp4", "a.mp4"], []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_costs_no_extraction(videos, refresh, monkeypatch, change, moved, changed, gone):
    refresh()
    before = vectors(videos, "a.mp4")
    change(videos)
    monkeypatch.setattr("costl.pipeline.encode.clip.load_encoder", lambda *_, **__: pytest.fail("CLIP was loaded"))
    files = refresh()
    assert (list(files.moved), list(files.changed), list(files.gone)) == (moved, changed, gone)
    assert files.done == () and files.failed == {}
    assert list(files.files) == sorted(list_videos(videos))
    for name in moved:
        np.testing.assert_array_equal(vectors(videos, name), before)
    contents = {file.content for file in files.files.values()}
    assert set(CacheReader(videos / ".costl" / CACHE).video_ids) == contents


def test_a_video_that_was_away_for_a_while_is_not_extracted_again(videos, refresh, tmp_path):
    refresh()
    (videos / "a.mp4").rename(tmp_path / "a.mp4")
    assert refresh().gone == ("a.mp4",)
    (tmp_path / "a.mp4").rename(videos / "a.mp4")
    assert refresh().done == () and "a.mp4" in refresh().files


def test_a_changed_video_is_extracted_again_and_no_other(videos, refresh):
    refresh()
    before = vectors(videos, "a.mp4")
    make_video(videos / "a.mp4", frame_times(30, fps=5))
    files = refresh()
    assert files.done == files.changed == ("a.mp4",)
    assert len(vectors(videos, "a.mp4")) == 3 != len(before)


def test_a_broken_video_is_reported_each_time_and_tried_once(videos, refresh, monkeypatch):
    (videos / "broken.mp4").write_bytes(b"\0" * 2000)
    first = refresh()
    assert list(first.failed) == ["broken.mp4"] and "broken.mp4" in first.failed["broken.mp4"]
    monkeypatch.setattr(update, "extract_into", lambda *_, **__: pytest.fail("tried again"))
    assert refresh().failed == first.failed
    assert read_library(videos, index_folder(videos)).failed == first.failed


@pytest.mark.parametrize("status", ["crashed", "timeout", "error"])
def test_a_video_that_failed_by_the_machine_is_tried_again(videos, refresh, monkeypatch, status):
    def fail(writer, unfinished, **_):
        return [writer.record_without_features(video.id, status=status, reason="the machine") for video in unfinished]

    shutil.rmtree(videos / ".costl")
    with monkeypatch.context() as patch:
        patch.setattr(update, "extract_into", fail)
        assert set(refresh().failed.values()) == {"the machine"}
    assert len(refresh().done) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_video_is_a_row(videos, refresh):
    (videos / "a.mp4").chmod(0)
    files = refresh()
    assert list(files.failed) == ["a.mp4"] and "Check its name and permissions" in files.failed["a.mp4"]


def test_a_dangling_link_is_a_row(videos, refresh):
    (videos / "link.mp4").symlink_to(videos / "nothing.mp4")
    assert list(refresh().failed) == ["link.mp4"] and len(refresh().files) == 4


@pytest.mark.parametrize("stop_after", range(4))
def test_an_update_that_was_stopped_goes_on(videos, refresh, stop_after):
    shutil.rmtree(videos / ".costl")
    ended = []

    def stop(progress):
        if progress.video:
            ended.append(progress.video)
        if len(ended) >= stop_after and progress.stage == "videos":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh(progress=stop)
    files = refresh()
    assert len(files.done) <= 3 - stop_after
    assert len(CacheReader(videos / ".costl" / CACHE).video_ids) == 3 and not files.failed
    assert set(ended) <= set(files.files), "progress names the files"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "files": {"a.mp4": 3}}'])
def test_a_damaged_list_of_files_is_made_again(videos, refresh, content):
    refresh()
    (videos / ".costl" / "files.json").write_text(content)
    files = refresh()
    assert len(files.files) == 3 and files.done == ()


def test_another_encoder_is_refused_by_name(videos, refresh, tmp_path, clip):
    refresh()
    shutil.copytree(clip, tmp_path / "other")
    for choice in ({"weights": str(tmp_path / "other")}, {"model": "ViT-L-14", "weights": None}):
        with pytest.raises(CacheError, match=r"was indexed with .*clip, not with .*--remove-index"):
            refresh(**choice)
    assert len(refresh(weights=None).files) == 3


def test_a_second_update_at_the_same_time_is_refused(videos, refresh):
    refresh()
    with locked_cache(videos / ".costl" / CACHE), pytest.raises(CacheError, match="another costl extract is writing"):
        refresh()


def test_folders_without_videos_are_refused(tmp_path, clip):
    (tmp_path / "file").touch()
    (tmp_path / "empty" / ".costl").mkdir(parents=True)
    for name, found in {"none": "no such folder", "file": "not a folder", "empty": "no videos in it"}.items():
        with pytest.raises(UsageError, match=found):
            update_library(tmp_path / name, tmp_path / "index", weights=str(clip))
    assert not (tmp_path / "index").exists()


def test_the_index_of_a_read_only_folder_is_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("costl.pipeline.library.folder.os.access", lambda path, mode: False)
    places = {index_folder(tmp_path / name) for name in ("a", "b", "a")}
    assert len(places) == 2 and {place.parent for place in places} == {user_folder() / "libraries"}


def test_the_text_tower_is_loaded_alone_once_its_weights_are_known(videos, refresh, monkeypatch):
    refresh()
    features = CacheReader(videos / ".costl" / CACHE)
    options = {"device": "cpu", "report_progress": lambda _: None}
    expected = load_encoder("ViT-B-32", features.source["weights"]).encode_text(["a ball"])[0].sentence
    encoder = load_text_encoder(features, **options)
    np.testing.assert_array_equal(encoder.sentence_vectors(["a ball"])[0], expected)
    with monkeypatch.context() as patch:
        patch.setattr("costl.pipeline.library.text.reload_encoder", lambda *_, **__: pytest.fail("both towers were loaded"))
        load_text_encoder(features, **options)


def test_other_weights_under_the_same_name_are_refused(videos, refresh, tmp_path, clip):
    weights = shutil.copytree(clip, tmp_path / "mine")
    shutil.rmtree(videos / ".costl")
    refresh(weights=str(weights))
    features = CacheReader(videos / ".costl" / CACHE)
    options = {"device": "cpu", "report_progress": lambda _: None}
    load_text_encoder(features, **options)
    shutil.rmtree(weights)
    write_clip_weights(weights)
    with pytest.raises(CacheError, match="needs another CLIP"):
        load_text_encoder(features, **options)

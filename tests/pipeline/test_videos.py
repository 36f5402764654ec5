"""Which files of a folder are videos, their ids, and the hash of their content."""

from __future__ import annotations

import errno
import hashlib
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.videos import (
    SUFFIXES,
    Video,
    content_hash,
    file_stamp,
    find_videos,
    left_out,
    read_failure,
    safe_id,
)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_videos_are_found_by_suffix_and_sorted_by_id(tmp_path):
    touch(tmp_path, "b.MP4", "a.mkv", "notes.txt", "c.webm", "train.jsonl", ".mp4")
    assert [video.id for video in find_videos(tmp_path)] == ["a", "b", "c"]
    assert find_videos(tmp_path)[0] == Video("a", tmp_path / "a.mkv")


def test_every_known_suffix_counts(tmp_path):
    touch(tmp_path, *(f"{suffix[1:]}{suffix}" for suffix in SUFFIXES))
    assert len(find_videos(tmp_path)) == len(SUFFIXES) == 17


def test_the_id_is_the_whole_stem_with_dots(tmp_path):
    touch(tmp_path, "-0abC_d.e_60.0_210.0.mp4")
    assert [video.id for video in find_videos(tmp_path)] == ["-0abC_d.e_60.0_210.0"]


def test_a_folder_may_hold_its_videos_in_a_folder_called_videos(tmp_path):
    touch(tmp_path / "videos", "a.mp4")
    touch(tmp_path / "other", "b.mp4")
    assert [video.id for video in find_videos(tmp_path)] == ["a"]
    touch(tmp_path, "top.mp4")
    assert [video.id for video in find_videos(tmp_path)] == ["top"]


def test_a_non_file_with_a_video_suffix_counts_only_next_to_videos(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match="no videos"):
        find_videos(tmp_path)
    touch(tmp_path, "real.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    paths = {video.id: video.path for video in find_videos(tmp_path)}
    assert list(paths) == ["dangling", "link", "loop", "pipe", "real"]
    for name in ("dangling", "loop", "pipe"):
        with pytest.raises(VideoError, match=f"^{name}.mp4: "):
            content_hash(paths[name])


# What lies beside videos: a video (V), left out and named (N), or nothing to do with videos (-). A name with / is a folder.
BESIDE_VIDEOS = {
    "b.mpeg": "V", "b.MTS": "V", "b.m2ts": "V", "b.ogv": "V", "VTS_01_1.VOB": "V", "b.divx": "V", "b.Mp4": "V",
    "-b_0.0.mp4": "V", "_b.mp4": "V", "~b.mp4": "V", "b.part1.mp4": "V", "b.tmp.mp4": "V", "b .mp4": "V",
    "._b.mp4": "N", "._a.mp4": "N", ".b.MP4": "N", "..b.mkv": "N", ".b.mp4.icloud": "N", ".b.mp4.part": "N",
    "b.mp4.part": "N", "b.webm.crdownload": "N", "b.mov.download": "N", "b.f137.mp4.part": "N", "b.MKV.TMP": "N",
    "b.mp4/": "N", "bundle.mov/": "N",
    ".DS_Store": "-", "._.DS_Store": "-", "Thumbs.db": "-", "desktop.ini": "-", "b.part": "-", ".mp4": "-", "mp4": "-",
    "b.mp4.json": "-", "b.mp4.jpg": "-", "b.mp4.ytdl": "-", "b.srt": "-", "b.mp4~": "-", "b": "-",
    ".Trashes/": "-", ".Spotlight-V100/": "-", "$RECYCLE.BIN/": "-", "@eaDir/": "-", "lost+found/": "-",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), BESIDE_VIDEOS.items())
@pytest.mark.parametrize("within", ["", "videos"])
def test_what_lies_beside_videos_is_a_video_or_left_out(tmp_path, name, kind, within):
    folder = tmp_path / within
    touch(folder, "a.mp4")
    if name.endswith("/"):
        touch(folder / name, "inside.mp4")
    else:
        touch(folder, name)
    assert {video.path.name for video in find_videos(tmp_path)} == {"a.mp4", *([name] if kind == "V" else [])}
    assert left_out(folder) == ([name.rstrip("/")] if kind == "N" else [])


def test_an_unusable_folder_is_refused_with_its_contents(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c.txt")
    with pytest.raises(UsageError, match=r"no videos \(2 \.jpg, 1 \.txt\), expected .*\.mp4"):
        find_videos(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="it is empty"):
        find_videos(tmp_path / "none")
    with pytest.raises(UsageError, match="no such folder"):
        find_videos(tmp_path / "missing")
    with pytest.raises(UsageError, match="not a folder"):
        find_videos(tmp_path / "a.jpg")


def test_two_videos_of_one_name_are_refused_by_name(tmp_path):
    touch(tmp_path, "a.mp4", "a.mkv", "b.mp4")
    with pytest.raises(UsageError, match=r"a\.mkv and a\.mp4.*'a'"):
        find_videos(tmp_path)


WINDOWS = {"CON", "PRN", "AUX", "NUL", *(f"COM{i}" for i in range(10)), *(f"LPT{i}" for i in range(10))}
STEMS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=120)


# Names that are legal on Linux, with bytes that are not UTF-8, and names that other systems treat specially.
SPECIAL_STEMS = st.sampled_from(
    ["CON", "con", "nul.tar", "Aux ", "COM1", "lpt9.x", "..", ".", " ", "a.", "a ", "é", "e\u0301", "%41", "A"]
)
ANY_STEM = STEMS | SPECIAL_STEMS | st.text(st.sampled_from("aA%. \udc80\u0301\u00e9"), min_size=1, max_size=90)


@given(st.lists(ANY_STEM, min_size=2, max_size=20, unique=True))
def test_ids_are_plain_file_names_and_unique(stems):
    ids = [safe_id(stem) for stem in stems]
    assert len(set(ids)) == len(ids)
    for name in ids:
        assert name.isascii() and name.isprintable() and not name.startswith(".")
        assert not set(name) & set('/\\:*?"<>|') and name.partition(".")[0].strip().upper() not in WINDOWS
        assert 0 < len(name) <= 200 and len(f".{name}.h5.1234567-abcdef12.tmp") <= 255
        assert unicodedata.normalize("NFD", name) == name == unicodedata.normalize("NFC", name)
        VideoRow(name, "failed", "any")  # raises for an id that leads out of its folder


@given(STEMS)
def test_long_names_with_the_same_beginning_have_different_ids(stem):
    first = safe_id("x" * 300 + stem)
    second = safe_id("x" * 300 + stem + "y")
    assert first != second and len(first) == len(second) == 200 and first[:100] == second[:100]


@settings(deadline=None)
@given(st.text("ABCxyz019._-+ ", min_size=1, max_size=60).filter(lambda stem: not stem.startswith(".")))
def test_a_plain_name_is_its_own_id(stem):
    assert safe_id(stem) == stem


def test_known_encodings():
    assert [safe_id(stem) for stem in ["a%b", "é", "..", "a:b?", "a\nb", "\udcff", "CON", "nul.x", "%43ON"]] == [
        "a%25b", "%C3%A9", "%2E.", "a%3Ab%3F", "a%0Ab", "%FF", "%43ON", "%6Eul.x", "%2543ON",
    ]  # fmt: skip


def test_the_content_hash_is_over_size_and_bytes(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc" * 700_000)
    assert content_hash(path) == hashlib.sha256(b"2100000\n" + b"abc" * 700_000).hexdigest()
    first = content_hash(path)
    path.write_bytes(b"abc" * 699_999 + b"abd")
    assert content_hash(path) != first


def test_the_hash_of_a_file_that_changed_after_it_was_read_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    before = file_stamp(path)
    times = path.stat()
    assert content_hash(path, since=before) == content_hash(path)
    path.write_bytes(b"abd")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the old modification time
    with pytest.raises(VideoError, match=r"a\.mp4: was changed during this run") as refusal:
        content_hash(path, since=before)
    assert refusal.value.status == "changed"
    with pytest.raises(VideoError, match="was changed"):
        content_hash(path, since=file_stamp(tmp_path / "missing.mp4"))


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.EACCES, "failed"), (errno.EPERM, "failed"), (errno.ENOENT, "failed"), (errno.ELOOP, "failed"),
     (errno.ENAMETOOLONG, "failed"), (errno.EIO, "error"), (errno.ESTALE, "error"), (errno.ENOTCONN, "error"),
     (errno.ETIMEDOUT, "error"), (errno.EMFILE, "error"), (errno.ENODEV, "error"), (errno.EHOSTDOWN, "error")],
)  # fmt: skip
def test_only_errors_of_disk_and_network_have_the_status_error(number, status):
    failure = read_failure(Path("a.mp4"), OSError(number, os.strerror(number)))
    assert failure.status == status and str(failure).startswith(f"a.mp4: cannot be read ({os.strerror(number)}). Check ")


def test_a_file_that_cannot_be_read_is_a_video_error(tmp_path):
    with pytest.raises(VideoError, match="cannot be read"):
        content_hash(tmp_path / "missing.mp4")

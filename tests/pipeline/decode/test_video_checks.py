"""Files that are refused before a decoder opens them, judged by a few bytes; and the checks of frames and repairs."""

from __future__ import annotations

import os
import string
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.decode.video import (
    Frames,
    allowed_repairs,
    build_timeline,
    open_failure_reason,
    refuse_unsafe,
)
from costl.pipeline.errors import VideoError

BINARY = b"\x00\x01\x02\x03"
TEXT_REFUSAL = "a.mp4: not a video, its content is text. Replace it by a video, or remove it."


def refusal(path: Path) -> str | None:
    """The message with which a file is refused; None if it is not."""
    try:
        refuse_unsafe(path)
    except VideoError as error:
        return str(error)
    return None


def refusal_of(folder: Path, content: bytes) -> str | None:
    path = folder / "a.mp4"
    path.write_bytes(content)
    return refusal(path)


def test_empty_files_folders_and_pipes_are_refused(tmp_path):
    assert refusal_of(tmp_path, b"") == "a.mp4: empty (0 bytes). Download it again or remove it."
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for a writer
    for name in ("folder.mp4", "pipe.mp4"):
        assert refusal(tmp_path / name) == f"{name}: not a regular file. Replace it by a video, or remove it."


def test_files_that_cannot_be_read_are_refused_with_a_reason(tmp_path):
    assert refusal(tmp_path / "a.mp4") == "a.mp4: no such file. Check its name."
    (tmp_path / "b.mp4").symlink_to("nothing")
    assert refusal(tmp_path / "b.mp4") == "b.mp4: a broken link. Restore its target or remove the link."
    (tmp_path / "c.mp4").symlink_to("c.mp4")
    circular = "c.mp4: cannot be read (Too many levels of symbolic links). Check its name and permissions."
    assert refusal(tmp_path / "c.mp4") == circular
    not_utf8 = tmp_path / os.fsdecode(b"\xff.mp4")
    try:
        not_utf8.write_bytes(BINARY)
    except OSError:
        return  # this file system has no such names
    assert refusal(not_utf8) == f"{not_utf8.name}: its name is not valid UTF-8. Rename it."


def test_only_printable_ascii_and_white_space_count_as_text(tmp_path):
    printable = set(string.printable.encode()) - set(b"\v")
    assert {byte for byte in range(256) if refusal_of(tmp_path, bytes([byte])) == TEXT_REFUSAL} == printable


def test_the_first_16_bytes_decide_if_a_file_is_text_or_a_playlist(tmp_path):
    assert refusal_of(tmp_path, b"x" * 15 + BINARY) is None
    assert refusal_of(tmp_path, b"x" * 16 + BINARY) == TEXT_REFUSAL
    assert refusal_of(tmp_path, b"RIFFAAAAWAVEfmt " + BINARY) is None
    assert refusal_of(tmp_path, BINARY + b"RIFF") is None
    for playlist in (b"#EXTM3U", b"ffconcat"):
        assert refusal_of(tmp_path, playlist + BINARY) == TEXT_REFUSAL
        assert refusal_of(tmp_path, BINARY + playlist) is None


def test_checking_a_large_file_takes_no_memory(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(BINARY)
    os.truncate(path, 100_000_000)  # the rest is a hole
    tracemalloc.start()
    try:
        assert refusal(path) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_file_shorter_than_its_header_declares_is_truncated(tmp_path):
    whole = b"RIFF" + (100).to_bytes(4, "little") + b"AVI " + bytes(96)
    truncated = "a.mp4: truncated, the file ends before its data does. Download it again or remove it."
    assert refusal_of(tmp_path, whole) is None and refusal_of(tmp_path, whole + b"\0") is None
    assert refusal_of(tmp_path, whole[:-1]) == truncated


def test_an_mp4_that_does_not_open_is_truncated_if_it_lacks_its_index(tmp_path):
    path, ftyp, moov = tmp_path / "a.mp4", b"\0\0\0\x0cftypisom", b"\0\0\0\x09moov!"
    truncated = "truncated, it has no index (moov box). Download it again or remove it."
    other = "not a video that can be opened. Replace the file or remove it."
    contents = {
        ftyp: truncated,
        ftyp[:8]: truncated,
        ftyp + moov: other,
        BINARY * 4: other,
        BINARY + ftyp: other,
        b"": other,
    }
    for content, expected in contents.items():
        path.write_bytes(content)
        assert open_failure_reason(path) == expected
        assert open_failure_reason(path, "no pictures.") == (truncated if expected == truncated else "no pictures.")
    path.unlink()
    with pytest.raises(VideoError, match="no such file"):
        open_failure_reason(path)


def test_one_frame_in_twenty_may_be_repaired_but_at_least_one():
    assert [allowed_repairs(wanted) for wanted in range(5000)] == [max(1, wanted // 20) for wanted in range(5000)]


def test_the_error_for_damaged_frames_names_their_seconds():
    starts_s = np.array([-1.0, 0.0, 1.26, 2.0, 3.0])
    timeline = build_timeline(Path(os.devnull), starts_s, starts_s + 0.5, 0.0)
    assert str(timeline.damaged_error([3, 2, 4])) == (
        "null: damaged, cannot be decoded between 1.3 s and 3.0 s. Replace the file or remove it."
    )


PIXELS, TIMES_S = np.zeros((3, 4, 5, 3), np.uint8), np.array([0.0, 0.5, 0.5])
INVALID = {
    "three axes": (PIXELS[0], TIMES_S),
    "five axes": (PIXELS[:, :, :, :, None], TIMES_S),
    "four channels": (np.zeros((3, 4, 5, 4), np.uint8), TIMES_S),
    "rows in place of channels": (np.zeros((3, 3, 3, 1), np.uint8), TIMES_S),
    "float pixels": (PIXELS.astype(np.float32), TIMES_S),
    "float32 times": (PIXELS, TIMES_S.astype(np.float32)),
    "one time missing": (PIXELS, TIMES_S[:2]),
    "two-dimensional times": (PIXELS, TIMES_S[:, None]),
    "nan": (PIXELS, np.array([0.0, np.nan, 1.0])),
    "nan at the end": (PIXELS[:1], np.array([np.nan])),
    "infinite": (PIXELS, np.array([0.0, 1.0, np.inf])),
    "falling": (PIXELS, np.array([0.0, 0.5, 0.49])),
    "falling at the start": (PIXELS, np.array([0.1, 0.0, 1.0])),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_frames_are_an_assertion_error(case):
    Frames(PIXELS, TIMES_S)
    Frames(PIXELS[:0], TIMES_S[:0])
    with pytest.raises(AssertionError, match="^times must be finite and in order$" if "fall" in case else None):
        Frames(*INVALID[case])

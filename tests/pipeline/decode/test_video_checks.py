"""What is refused before a decoder sees it, told from a few bytes; and what frames and repairs have to be."""

from __future__ import annotations

import os
import string
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.decode.video import Frames, allowed_repairs, damaged, look_at, why_no_video
from costl.pipeline.errors import VideoError

NO_TEXT = b"\x00\x01\x02\x03"
TEXT = "a.mp4: not a video, its content is text. Remove it from the folder."
PACKETS = (
    "a.mp4: an MPEG transport stream, in which no decoder seeks to the right frame. "
    "Repack it without loss: ffmpeg -i IN.ts -c copy OUT.mp4."
)


def said(path: Path) -> str | None:
    """What the look says about a file, None where it lets it pass."""
    try:
        look_at(path)
    except VideoError as error:
        return str(error)
    return None


def said_of(folder: Path, content: bytes) -> str | None:
    path = folder / "a.mp4"
    path.write_bytes(content)
    return said(path)


def test_a_file_of_nothing_or_that_is_no_file_is_refused(tmp_path):
    assert said_of(tmp_path, b"") == "a.mp4: empty (0 bytes). Download it again or remove it."
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for a writer
    for name in ("folder.mp4", "pipe.mp4"):
        assert said(tmp_path / name) == f"{name}: not a regular file. Remove it from the folder."


def test_what_cannot_be_reached_is_refused_with_its_reason(tmp_path):
    assert said(tmp_path / "a.mp4") == "a.mp4: no such file."
    (tmp_path / "b.mp4").symlink_to("nothing")
    assert said(tmp_path / "b.mp4") == "b.mp4: a link to nothing. Put its video back or remove the link."
    (tmp_path / "c.mp4").symlink_to("c.mp4")
    assert said(tmp_path / "c.mp4") == "c.mp4: cannot be read (Too many levels of symbolic links)."
    odd = tmp_path / os.fsdecode(b"\xff.mp4")
    try:
        odd.write_bytes(NO_TEXT)
    except OSError:
        return  # this file system has no such names
    assert said(odd) == f"{odd.name}: its name is not valid UTF-8. Rename it."


def test_text_is_what_a_page_of_ascii_can_hold(tmp_path):
    printable = set(string.printable.encode()) - set(b"\v")
    assert {byte for byte in range(256) if said_of(tmp_path, bytes([byte])) == TEXT} == printable


def test_the_first_sixteen_bytes_tell_text_unless_they_begin_a_container_or_a_playlist(tmp_path):
    assert said_of(tmp_path, b"x" * 15 + NO_TEXT) is None
    assert said_of(tmp_path, b"x" * 16 + NO_TEXT) == TEXT
    assert said_of(tmp_path, b"RIFFAAAAWAVEfmt " + NO_TEXT) is None
    assert said_of(tmp_path, NO_TEXT + b"RIFF") is None
    for playlist in (b"#EXTM3U", b"ffconcat"):
        assert said_of(tmp_path, playlist + NO_TEXT) == TEXT
        assert said_of(tmp_path, NO_TEXT + playlist) is None


def test_the_look_at_a_large_file_takes_no_memory(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(NO_TEXT)
    os.truncate(path, 100_000_000)  # the rest is a hole
    tracemalloc.start()
    try:
        assert said(path) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_file_is_truncated_where_a_byte_of_what_it_promises_is_missing(tmp_path):
    whole = b"RIFF" + (100).to_bytes(4, "little") + b"AVI " + bytes(96)
    cut = "a.mp4: truncated, the file ends before its data does. Download it again or remove it."
    assert said_of(tmp_path, whole) is None and said_of(tmp_path, whole + b"\0") is None
    assert said_of(tmp_path, whole[:-1]) == cut


def test_a_transport_stream_is_told_by_the_distance_of_its_first_packets(tmp_path):
    for first in (0, 1, 3, 4, 5):
        for second in (187, 188, 189, 192, 195, 196, 197):
            content = bytearray(210)
            content[first] = content[second] = ord("G")
            expected = PACKETS if (first, second) in {(0, 188), (4, 196)} else None
            assert said_of(tmp_path, bytes(content)) == expected, (first, second)
            # The second packet's first byte is enough, and needed.
            assert said_of(tmp_path, bytes(content[: second + 1])) == expected
            assert said_of(tmp_path, bytes(content[:second])) is None


def test_an_mp4_that_no_decoder_opens_is_truncated_where_it_has_no_index(tmp_path):
    path, ftyp, moov = tmp_path / "a.mp4", b"\0\0\0\x0cftypisom", b"\0\0\0\x09moov!"
    cut = "truncated, it has no index (moov box). Download it again or remove it."
    other = "not a video that can be opened. Replace the file or remove it."
    contents = {ftyp: cut, ftyp[:8]: cut, ftyp + moov: other, NO_TEXT * 4: other, NO_TEXT + ftyp: other, b"": other}
    for content, expected in contents.items():
        path.write_bytes(content)
        assert why_no_video(path) == expected
        assert why_no_video(path, "no pictures.") == (cut if expected == cut else "no pictures.")


def test_one_frame_in_twenty_may_be_replaced_and_always_one():
    assert [allowed_repairs(wanted) for wanted in range(5000)] == [max(1, wanted // 20) for wanted in range(5000)]


def test_what_is_damaged_is_told_with_its_seconds():
    assert str(damaged(Path("x/a.mp4"), 1.26, 3.0)) == (
        "a.mp4: damaged, cannot be decoded between 1.3 s and 3.0 s. Replace the file or remove it."
    )


PIXELS, TIMES_S = np.zeros((3, 4, 5, 3), np.uint8), np.array([0.0, 0.5, 0.5])
WRONG = {
    "three axes": (PIXELS[0], TIMES_S),
    "five axes": (PIXELS[:, :, :, :, None], TIMES_S),
    "four channels": (np.zeros((3, 4, 5, 4), np.uint8), TIMES_S),
    "three rows are no channels": (np.zeros((3, 3, 3, 1), np.uint8), TIMES_S),
    "floating pixels": (PIXELS.astype(np.float32), TIMES_S),
    "single precision": (PIXELS, TIMES_S.astype(np.float32)),
    "a time too few": (PIXELS, TIMES_S[:2]),
    "a column of times": (PIXELS, TIMES_S[:, None]),
    "no number": (PIXELS, np.array([0.0, np.nan, 1.0])),
    "no number at the end": (PIXELS[:1], np.array([np.nan])),
    "no end": (PIXELS, np.array([0.0, 1.0, np.inf])),
    "falling": (PIXELS, np.array([0.0, 0.5, 0.49])),
    "falling at first": (PIXELS, np.array([0.1, 0.0, 1.0])),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_frames_that_are_none_are_our_own_mistake(wrong):
    Frames(PIXELS, TIMES_S)
    Frames(PIXELS[:0], TIMES_S[:0])
    with pytest.raises(AssertionError, match="^times must be finite and in order$" if "fall" in wrong else None):
        Frames(*WRONG[wrong])

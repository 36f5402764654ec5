"""Chapters, read back by FFmpeg, and the list that video sites read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_videos import frame_times, make_video
from random_hits import RATES, hit, known_hits

from costl.search.export.chapters import chapter_list, ffmetadata


def read_chapters(text: str, folder: Path) -> list[tuple[Fraction, Fraction, str]]:
    """The chapters (start in seconds, end, title) that FFmpeg reads."""
    path = folder / "a.ffmetadata"
    path.write_bytes(text.encode())
    with av.open(str(path)) as container:
        return [(c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"]) for c in container.chapters()]


@pytest.mark.parametrize("name", RATES)
@settings(max_examples=40)
@given(data=st.data())
def test_ffmpeg_reads_chapters_that_begin_with_the_frame(name, data, tmp_path_factory):
    rate, _ = RATES[name]
    hits = data.draw(known_hits(rate, on_frames=True))
    chapters = read_chapters(ffmetadata([known.hit for known in hits]), tmp_path_factory.getbasetemp())
    firsts = sorted({0, *(known.first for known in hits)})
    assert [first_frame_at(start_s, rate) for start_s, _, _ in chapters] == firsts
    for (start_s, end_s, _), first, after in zip(chapters, firsts, [*firsts[1:], 10**9], strict=True):
        longest = max((known.stop for known in hits if known.first == first), default=after)
        assert first_frame_at(end_s, rate) == min(longest, after) and start_s < end_s


def first_frame_at(time_s: Fraction, rate: Fraction) -> int:
    """The first frame that begins at or after a time: the one with which a player changes the chapter."""
    return -int(-time_s * rate // 1)


def test_a_chapter_ends_where_the_next_begins_and_equal_starts_share_one(tmp_path):
    hits = [hit(5.0, 9.0, query="b"), hit(0.0, 6.0, query="a"), hit(5.0, 7.0, query="c"), hit(5.0, 6.0, query="b"), hit(20, 21)]
    assert read_chapters(ffmetadata(hits), tmp_path) == [(0, 5, "a"), (5, 9, "b / c"), (20, 21, "a cat")]
    assert read_chapters(ffmetadata(hits[4:]), tmp_path) == [(0, 20, "a"), (20, 21, "a cat")]
    assert read_chapters(ffmetadata([]), tmp_path) == []


@settings(max_examples=200)
@given(st.text("=;#\\\n\r\"',äπ猫[]/ abCHAPTER", min_size=1) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_query_breaks_the_metadata(tmp_path_factory, query):
    chapters = read_chapters(ffmetadata([hit(1.0, 2.0, query=f"x{query}")]), tmp_path_factory.getbasetemp())
    expected = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", f"x{query}").split())
    # FFmpeg reads a backslash at the end only with something behind it.
    assert chapters == [(0, 1, "a"), (1, 2, expected + " " * expected.endswith("\\"))]


@pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg and ffprobe are not installed")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_ffmpeg_writes_the_chapters_into_a_video(tmp_path, suffix):
    rate = Fraction(24000, 1001)
    make_video(tmp_path / "in.mp4", frame_times(120, rate), ticks=24000)
    hits = [hit(float(10 / rate), float(50 / rate), query="a=b; c"), hit(float(71 / rate), float(119 / rate), query="猫")]
    (tmp_path / "in.ffmetadata").write_text(ffmetadata(hits), encoding="utf-8")
    out = tmp_path / f"out{suffix}"
    inputs = ["-i", str(tmp_path / "in.mp4"), "-i", str(tmp_path / "in.ffmetadata")]
    ffmpeg = ["ffmpeg", "-v", "error", *inputs, "-map_metadata", "0", "-map_chapters", "1", "-c", "copy", str(out)]
    assert subprocess.run(ffmpeg, check=True, capture_output=True, text=True).stderr == ""
    ffprobe = ["ffprobe", "-v", "error", "-show_chapters", "-of", "json", str(out)]
    chapters = json.loads(subprocess.run(ffprobe, check=True, capture_output=True, text=True).stdout)["chapters"]
    assert [chapter["tags"]["title"] for chapter in chapters] == ["a", "a=b; c", "猫"]
    starts = [first_frame_at(Fraction(chapter["start_time"]), rate) for chapter in chapters]
    ends = [first_frame_at(Fraction(chapter["end_time"]), rate) for chapter in chapters]
    # MP4 has no time between two chapters.
    assert starts == [0, 10, 71] and ends == [10, 71 if suffix == ".mp4" else 50, 119]


def test_the_list_of_a_video_site_begins_at_0_and_rises():
    hits = [hit(36_061.9, 36_070.0, query="late\n1:00 x"), hit(59.99, 70.0, query="b"), hit(59.0, 60.0, query="c")]
    assert chapter_list(hits).splitlines() == ["00:00:00 a", "00:00:59 b / c", "10:01:01 late 1:00 x"]
    assert chapter_list([hit(0.5, 2.0)]) == "00:00:00 a cat\n" and chapter_list([]) == ""


@given(st.lists(st.tuples(st.floats(0, 4e5), st.text()), min_size=1, max_size=9))
def test_every_line_has_a_later_time(rows):
    text = chapter_list([hit(start_s, start_s + 1, query=query) for start_s, query in rows])
    matches = [re.fullmatch(r"(\d\d+):([0-5]\d):([0-5]\d) [^\n]*", line) for line in text.removesuffix("\n").split("\n")]
    times = [3600 * int(m[1]) + 60 * int(m[2]) + int(m[3]) for m in matches if m]
    assert len(times) == len(matches) and times == sorted(set(times)) and times[0] == 0
    assert set(times) == {0, *(int(start_s + 1e-6) for start_s, _ in rows)}

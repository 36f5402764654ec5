"""Formats of answers: an independent reader parses each of them, and no query or file name can break a format."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.formats import format_answers
from costl.ask.output import _moment_files
from costl.ask.picture import draw_answers
from costl.pipeline.errors import UsageError
from costl.plots.terminal_text import bar, clock, one_line, sparkline, ticks

moments = st.tuples(st.floats(0, 4e5), st.floats(1e-4, 3e3), st.floats(0, 1)).map(
    lambda t: Moment(t[0], t[0] + t[1], t[2])
)
texts = st.text(min_size=1, max_size=40)


def answer(*moments: Moment, query: str = "a cat", video: str = "v.mp4", scores=(0.0, 1.0, 2.0)) -> Answer:
    return Answer(
        query, Path(video), 6.0, moments or (Moment(2.0, 4.5, 0.9), Moment(0.0, 1.0, 0.25)), Saliency(2.0, scores)
    )


def read_cues(text: str, output_format: str, folder: Path) -> list[tuple[float, float, str]]:
    """The cues (start, end, text) that FFmpeg reads."""
    file = folder / f"a.{output_format}"
    file.write_bytes(text.encode())
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(subtitles=0) if packet.size]
        return [
            (float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base), bytes(p).decode()) for p in packets
        ]


@pytest.mark.parametrize("output_format", ["srt", "vtt"])
def test_ffmpeg_reads_subtitles_sorted_by_time(output_format, tmp_path):
    late = answer(Moment(3725.5, 3730.25, 0.5), query="a dog\n\n00:00:01,000 --> 00:00:02,000\nx & <b>y</b>")
    cues = read_cues(format_answers([late, answer()], output_format), output_format, tmp_path)
    assert [cue[:2] for cue in cues] == [(0.0, 1.0), (2.0, 4.5), (3725.5, 3730.25)]
    assert cues[0][2] == "a cat (0.25)" and "\n" not in cues[2][2].strip()


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(texts, st.lists(moments, max_size=4)), max_size=4))
def test_subtitles_have_one_block_per_cue_for_any_query(rows):
    answers = [Answer(query, Path("v"), 9.0, tuple(best), Saliency(2.0, (1.0,))) for query, best in rows]
    count = sum(len(answer.moments) for answer in answers)
    for output_format, point in (("srt", ","), ("vtt", ".")):
        blocks = [block for block in format_answers(answers, output_format).split("\n\n") if block.strip()]
        times = rf"\d\d+:\d\d:\d\d\{point}\d{{3}} --> \d\d+:\d\d:\d\d\{point}\d{{3}}"
        lines = [line for block in blocks for line in block.split("\n") if re.fullmatch(times, line)]
        assert len(blocks) - (output_format == "vtt") == len(lines) == count
        for line in lines:
            start, end = line.split(" --> ")
            assert start < end or len(start) < len(end)


def test_json_jsonl_and_csv_hold_every_moment():
    answers = [answer(), answer(query='a "yes", twice', video="a,b.mp4")]
    rows = [json.loads(line) for line in format_answers(answers, "jsonl").splitlines()]
    assert rows == json.loads(format_answers(answers, "json"))
    assert rows[0]["moments"][0] == {"start_s": 2.0, "end_s": 4.5, "score": 0.9}
    assert rows[0]["saliency"] == {"clip_s": 2.0, "scores": [0.0, 1.0, 2.0]} and rows[1]["video"] == "a,b.mp4"
    table = list(csv.DictReader(io.StringIO(format_answers(answers, "csv"))))
    assert [row["rank"] for row in table] == ["1", "2", "1", "2"] and table[2]["query"] == 'a "yes", twice'
    assert table[0]["start_s"] == "2.000" and table[0]["score"] == "0.9000"


def test_the_table_shows_times_scores_bars_and_saliency():
    assert repr(answer()).splitlines() == [
        "v.mp4 · 0:06 · a cat",
        "   1  0:02 – 0:04  0.90  ██████████████████",
        "   2  0:00 – 0:01  0.25  █████",
        "      ▁▅█  saliency",
    ]


@pytest.mark.parametrize("count", [-1, np.int64(-1), "two", 1.0, float("nan"), float("inf"), None, [1]])
def test_only_a_number_of_moments_is_accepted(count):
    for allowed in (0, 1, np.int64(1), np.uint8(2), 10**9):
        assert answer().top(allowed).moments == answer().moments[: int(allowed)]
    with pytest.raises(UsageError, match="count is"):
        answer().top(count)


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match="output_format is 'xml', expected one of table, json"):
        format_answers([answer()], "xml")


def test_control_characters_are_removed_from_the_table():
    assert "\x1b" not in repr(answer(query="a\x1b[2Jcat\r\n", video="\x1b]0;x\x07.mp4"))
    assert one_line(" a \n\t b\u2028c ") == "a b c"


def test_clock_bar_and_ticks():
    assert [clock(second) for second in (0, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
    assert [bar(score) for score in (0.0, 0.5, 1.0)] == ["", "█" * 10, "█" * 20]
    assert ticks(60) == [0, 10, 20, 30, 40, 50, 60] and ticks(7000)[1] == 900 and ticks(1e6)[1] == 100_000


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=500))
def test_a_sparkline_peaks_where_the_scores_peak(scores):
    line = sparkline(scores)
    assert len(line) == min(60, len(scores)) and set(line) <= set("▁▂▃▄▅▆▇█")
    if len(scores) <= 60 and max(scores) - min(scores) > 1e-6:
        assert line[scores.index(max(scores))] == "█" and line[scores.index(min(scores))] == "▁"


def test_names_of_cut_files_are_safe_and_unique(tmp_path):
    answers = [
        answer(query="../../etc/passwd"),
        answer(query="猫が: 跳ぶ?"),
        answer(query="!", video="ein Vidéo #1.mp4"),
        answer(query="x" * 500),
        answer(video="there/V.mp4"),
        answer(),
    ]
    names = [path.name for _, _, path in _moment_files(answers, tmp_path)]
    assert len({name.casefold() for name in names}) == len(names) == 12
    assert all(re.fullmatch(r"[\w.-]+\.mp4", name) and len(name.encode()) < 200 for name in names)
    assert names[0] == "v.etc-passwd.1.0-02.mp4" and names[2] == "v.猫が-跳ぶ.1.0-02.mp4"
    assert names[4] == "ein-vidéo-1.x.1.0-02.mp4"


def test_answers_are_drawn_without_video_moments_or_known_characters(real_pictures):
    unusual = Answer("猫 $x^2$ \x07", Path("gone.mp4"), 0.4, (), Saliency(2.0, (1.0,)))
    assert draw_answers([unusual, answer(video="gone.mp4")]).startswith(b"\x89PNG")

"""Answers as text: every format is read back by somebody else's reader, and no text can break out of its place."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.ask.answer import Answer, Moment, Saliency, told
from costl.ask.output import _places
from costl.plots.answer import draw_answers
from costl.plots.text import bar, clock, one_line, sparkline, tick_step

times = st.tuples(st.floats(0, 4e5), st.floats(1e-4, 3e3), st.floats(0, 1)).map(
    lambda t: Moment(t[0], t[0] + t[1], t[2])
)
texts = st.text(min_size=1, max_size=40)


def answer(*moments: Moment, query: str = "a cat", video: str = "v.mp4", scores=(0.0, 1.0, 2.0)) -> Answer:
    return Answer(
        query, Path(video), 6.0, moments or (Moment(2.0, 4.5, 0.9), Moment(0.0, 1.0, 0.25)), Saliency(2.0, scores)
    )


def cues(text: str, form: str, folder: Path) -> list[tuple[float, float, str]]:
    """What FFmpeg reads: (start, end, text)."""
    (folder / f"a.{form}").write_bytes(text.encode())
    with av.open(str(folder / f"a.{form}")) as container:
        packets = [packet for packet in container.demux(subtitles=0) if packet.size]
        return [
            (float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base), bytes(p).decode()) for p in packets
        ]


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_read_back_by_ffmpeg_sorted_by_time(form, tmp_path):
    late = answer(Moment(3725.5, 3730.25, 0.5), query="a dog\n\n00:00:01,000 --> 00:00:02,000\nx & <b>y</b>")
    found = cues(told([late, answer()], form), form, tmp_path)
    assert [cue[:2] for cue in found] == [(0.0, 1.0), (2.0, 4.5), (3725.5, 3730.25)]
    assert found[0][2] == "a cat (0.25)" and "\n" not in found[2][2].strip()


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(texts, st.lists(times, max_size=4)), max_size=4))
def test_subtitles_have_one_block_a_cue_whatever_the_query(rows):
    answers = [Answer(query, Path("v"), 9.0, tuple(moments), Saliency(2.0, (1.0,))) for query, moments in rows]
    count = sum(len(moments) for _, moments in rows)
    for form, point in (("srt", ","), ("vtt", ".")):
        blocks = [block for block in told(answers, form).split("\n\n") if block.strip()]
        stamp = rf"\d\d+:\d\d:\d\d\{point}\d{{3}} --> \d\d+:\d\d:\d\d\{point}\d{{3}}"
        lines = [line for block in blocks for line in block.split("\n") if re.fullmatch(stamp, line)]
        assert len(blocks) - (form == "vtt") == len(lines) == count
        for line in lines:
            start, end = line.split(" --> ")
            assert start < end or len(start) < len(end)


def test_json_lines_csv_and_table_hold_every_moment():
    answers = [answer(), answer(query='said "no", twice', video="a,b.mp4")]
    rows = [json.loads(line) for line in told(answers, "jsonl").splitlines()]
    assert rows == json.loads(told(answers, "json"))
    assert rows[0]["moments"][0] == {"start_s": 2.0, "end_s": 4.5, "score": 0.9}
    assert rows[0]["saliency"] == {"clip_s": 2.0, "scores": [0.0, 1.0, 2.0]} and rows[1]["video"] == "a,b.mp4"
    table = list(csv.DictReader(io.StringIO(told(answers, "csv"))))
    assert [row["rank"] for row in table] == ["1", "2", "1", "2"] and table[2]["query"] == 'said "no", twice'
    assert table[0]["start_s"] == "2.000" and table[0]["score"] == "0.9000"


def test_a_table_can_be_read_at_a_glance():
    assert repr(answer()).splitlines() == [
        "v.mp4 · 0:06 · a cat",
        "   1  0:02 – 0:04  0.90  ██████████████████",
        "   2  0:00 – 0:01  0.25  █████",
        "      ▁▅█  saliency",
    ]


def test_no_answer_moves_the_cursor_of_a_terminal():
    assert "\x1b" not in repr(answer(query="a\x1b[2Jcat\r\n", video="\x1b]0;x\x07.mp4"))
    assert one_line(" a \n\t b\u2028c ") == "a b c"


def test_times_and_bars():
    assert [clock(second) for second in (0, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
    assert [bar(score) for score in (0.0, 0.5, 1.0)] == ["", "█" * 10, "█" * 20]
    assert tick_step(60) == 10 and tick_step(7000) == 900 and tick_step(1e6) == 100_000


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=500))
def test_a_sparkline_rises_where_the_scores_do(scores):
    line = sparkline(scores)
    assert len(line) == min(60, len(scores)) and set(line) <= set("▁▂▃▄▅▆▇█")
    if len(scores) <= 60 and max(scores) - min(scores) > 1e-6:
        assert line[scores.index(max(scores))] == "█" and line[scores.index(min(scores))] == "▁"


def test_names_of_clips_are_safe_and_never_the_same(tmp_path):
    answers = [
        answer(query="../../etc/passwd"),
        answer(query="猫が: 跳ぶ?"),
        answer(query="!", video="ein Vidéo #1.mp4"),
        answer(query="x" * 500),
        answer(video="there/V.mp4"),
        answer(),
    ]
    names = [path.name for _, _, path in _places(answers, tmp_path)]
    assert len({name.casefold() for name in names}) == len(names) == 12
    assert all(re.fullmatch(r"[\w.-]+\.mp4", name) and len(name.encode()) < 200 for name in names)
    assert names[0] == "v.etc-passwd.1.0-02.mp4" and names[2] == "v.猫が-跳ぶ.1.0-02.mp4"
    assert names[4] == "ein-vidéo-1.x.1.0-02.mp4"


def test_a_picture_needs_neither_the_video_nor_moments_nor_characters_of_the_font():
    strange = Answer("猫 $x^2$ \x07", Path("gone.mp4"), 0.4, (), Saliency(2.0, (1.0,)))
    assert draw_answers([strange, answer(video="gone.mp4")]).startswith(b"\x89PNG")

"""Search results as text: an independent reader parses each format, and the frames are right at every rate."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_hits import RATES, hit, known_hits, numbers_at

from costl.ask.answer import Answer, Moment, Saliency
from costl.ask.formats import format_answers
from costl.pipeline.errors import UsageError
from costl.search.export.formats import FORMATS, NUMBERED, ONE_VIDEO, format_hits, is_ours
from costl.search.hits import SearchResult


def read_cues(text: str, output_format: str, folder: Path) -> list[tuple[Fraction, Fraction]]:
    """The cues (start in seconds, end) that FFmpeg reads."""
    file = folder / f"a.{output_format}"
    file.write_bytes(text.encode())
    with av.open(str(file)) as container:
        packets = [packet for packet in container.demux(subtitles=0) if packet.size]
        return [(p.pts * p.time_base, (p.pts + p.duration) * p.time_base) for p in packets]


def frames_shown(start_s: Fraction, end_s: Fraction, rate: Fraction) -> tuple[int, int]:
    """The frames [first, stop) that begin at or after the start of a cue and before its end: those that players show it with."""
    return -int(-start_s * rate // 1), -int(-end_s * rate // 1)


@pytest.mark.parametrize("output_format", ["srt", "vtt"])
@pytest.mark.parametrize("name", RATES)
@settings(max_examples=25)
@given(data=st.data())
def test_ffmpeg_shows_subtitles_with_the_frames_of_the_hits(name, output_format, data, tmp_path_factory):
    rate, _ = RATES[name]
    hits = data.draw(known_hits(rate, on_frames=True))
    result = SearchResult("a cat", tuple(known.hit for known in hits))
    cues = read_cues(format_hits([result], output_format), output_format, tmp_path_factory.getbasetemp())
    # FFmpeg drops a cue that is equal to another.
    assert {frames_shown(start_s, end_s, rate) for start_s, end_s in cues} == {(known.first, known.stop) for known in hits}
    moments = tuple(Moment(one.start_s, one.end_s, one.score) for one in result.hits)
    answer = Answer("a cat", Path("a.mp4"), 1.0, moments, Saliency(2.0, (0.5,)))
    assert format_answers([answer], output_format) == format_hits([result], output_format)


@pytest.mark.parametrize("name", RATES)
@settings(max_examples=25)
@given(data=st.data())
def test_tables_for_programs_have_times_from_which_the_frames_follow(name, data):
    rate, _ = RATES[name]
    hits = data.draw(known_hits(rate))
    results = [SearchResult("a cat", tuple(known.hit for known in hits)), SearchResult("x", (hit(0, 1),))]
    rows = list(csv.DictReader(io.StringIO(format_hits(results, "csv"))))
    assert [row["rank"] for row in rows] == [*map(str, range(1, len(hits) + 1)), "1"]
    lines = [json.loads(line) for line in format_hits(results, "jsonl").splitlines()]
    assert lines == json.loads(format_hits(results, "json")) == [result.to_row() for result in results]
    for row in (rows, lines[0]["hits"]):
        spans = [numbers_at(rate).span(float(one["start_s"]), float(one["end_s"])) for one in row[: len(hits)]]
        assert spans == [(known.first, known.stop) for known in hits]


def test_csv_keeps_every_character():
    query, name = 'a "dog", \n= 猫;', "b,\nc.mp4"
    (row,) = csv.DictReader(io.StringIO(format_hits([SearchResult(query, (hit(1, 2.5, query=query, name=name),))], "csv")))
    assert row == {
        "query": query,
        "rank": "1",
        "name": name,
        "start_s": "1.000000",
        "end_s": "2.500000",
        "score": "0.5000",
        "video": f"/videos/{name}",
    }


def text_of(output_format: str, *hits) -> str:
    numbers = {one.name: numbers_at(Fraction(25)) for one in hits}
    return format_hits([SearchResult("a cat", hits, hits, 3)], output_format, frame_numbers=numbers)


@pytest.mark.parametrize("hits", [(), (hit(1, 2),), (hit(1, 2), hit(0, 3, query="x\ny"))], ids=["none", "one", "two"])
@pytest.mark.parametrize("output_format", FORMATS)
def test_a_text_is_known_as_ours_and_ends_its_last_line(output_format, hits):
    text = text_of(output_format, *hits)
    assert text.endswith("\n") or not text
    # People write such lists of chapters themselves.
    assert is_ours(text.encode()) == (bool(text) and output_format != "chapters")


@pytest.mark.parametrize(
    "content",
    [
        "TITLE: My cut\nFCM: NON-DROP FRAME\n",
        '{\n  "OTIO_SCHEMA": "Timeline.1",\n  "metadata": {},\n',
        ";FFMETADATA1\ntitle=x\n",
        "00:00:00 Intro\n",
        "query,rank,score\n",
        '[\n  {\n    "query": "a cat",\n    "vid": 1',
        '{"query": "a cat", "vid": 3}',
        "my notes · of today\n",
    ],
)
def test_what_people_and_other_programs_write_is_not_ours(content):
    assert not is_ours(content.encode())


@pytest.mark.parametrize("output_format", FORMATS)
def test_formats_of_one_video_refuse_several(output_format):
    hits = hit(0, 1), hit(0, 1, name="b.mp4")
    if output_format in ONE_VIDEO:
        with pytest.raises(UsageError, match=rf"^{output_format} has the times of one video.* in 2\. Name a folder with --out"):
            text_of(output_format, *hits)
    else:
        text = text_of(output_format, *hits)
        assert "a.mp4" in text and "b.mp4" in text


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match="output_format is 'xml', expected one of table, json"):
        format_hits([], "xml")
    assert set(NUMBERED) | set(ONE_VIDEO) < set(FORMATS)

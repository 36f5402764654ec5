"""Any table that Python's csv module writes is read back the same, whatever its dialect."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.converters.layouts import tables
from costl.converters.layouts.table_columns import FRAMES, NAMES, REQUIRED
from costl.converters.times import parse_seconds
from costl.converters.video_folder import VideoFolder
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.strict_json import read_text

NO_VIDEOS = VideoFolder(None)
words = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(' ,;|"\t\n\''), min_size=1).filter(str.strip)
times = st.integers(0, 10**7).map(lambda milliseconds: milliseconds / 1000)
rows = st.lists(st.tuples(words, times, times, words).filter(lambda row: row[1] < row[2]), min_size=1, max_size=5)


def one_line(text: str) -> str:
    return " ".join(text.split())


@given(
    rows=rows,
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    names=st.fixed_dictionaries({meaning: st.sampled_from(NAMES[meaning]) for meaning in REQUIRED}),
    order=st.permutations(REQUIRED),
    decimal_comma=st.booleans(),
)
def test_a_table_of_any_dialect_is_read_back(
    rows, delimiter, quoting, line_end, encoding, names, order, decimal_comma, tmp_path_factory
):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerow([names[meaning] for meaning in order])
    for video, start, end, text in rows:
        cells = dict(zip(REQUIRED, (video, start, end, text), strict=True))
        if decimal_comma and delimiter != ",":
            cells |= {"start": str(start).replace(".", ","), "end": str(end).replace(".", ",")}
        writer.writerow([cells[meaning] for meaning in order])
    path = tmp_path_factory.mktemp("table") / "a.csv"
    path.write_bytes(file.getvalue().encode(encoding))
    read = tables.read(path, read_text(path), NO_VIDEOS).labels
    labels = [(label.video, *label.windows[0], label.sentence) for label in read]
    assert labels == [(video.strip(), start, end, one_line(text)) for video, start, end, text in rows]


@given(st.integers(0, 359_999_999))
def test_every_millisecond_is_read_from_every_way_to_write_it(milliseconds):
    seconds = milliseconds / 1000
    minutes, rest = divmod(milliseconds, 60_000)
    hours, clock = divmod(minutes, 60)
    texts = [f"{milliseconds // 1000}.{milliseconds % 1000:03}", f"{hours}:{clock:02}:{rest / 1000:06.3f}"]
    texts += [f"{minutes}:{rest / 1000:06.3f}"] if minutes < 1000 else []
    texts += [text.replace(".", ",") for text in texts[1:]]
    assert [parse_seconds(text) for text in texts] == pytest.approx([seconds] * len(texts), abs=1e-9)


@given(st.text(max_size=12))
def test_any_other_text_is_a_time_or_refused(text):
    try:
        assert parse_seconds(text) == parse_seconds(text.strip())
    except UsageError as error:
        assert "is not a time" in str(error)


@given(st.text(max_size=200))
def test_any_text_is_a_table_or_refused_by_name(text):
    try:
        tables.read(Path(__file__), text, NO_VIDEOS)
    except UsageError as error:
        assert str(error).startswith(f"{__file__}:")


def test_no_name_of_a_column_has_two_meanings():
    names = [name for known in (NAMES, FRAMES) for options in known.values() for name in options]
    assert len(names) == len(set(names))

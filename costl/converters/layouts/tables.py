"""Reads CSV, TSV and semicolon tables: a row for each moment, with the columns video, start, end and text."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from costl.benchmarks.common import parse_all
from costl.converters.labels import Label, Labels
from costl.converters.layouts.table_columns import Columns, guess_columns
from costl.converters.times import frames_to_window, is_timecode, parse_seconds, timecode_frame
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import Window
from costl.pipeline.data_folder import SPLIT_NAMES, SPLITS
from costl.pipeline.errors import UsageError

HIGHEST_RATING = 4.0
SUFFIXES = (".csv", ".tsv", ".txt")
_FRAME = re.compile(r"\d{1,12}(\.0)?", re.ASCII)


def read(path: Path, text: str, videos: VideoFolder) -> Labels:
    """The labels of a table, a row for each moment, and the guess of its columns as a note.

    Frame numbers count from 0, and the last frame belongs to the moment. Raises UsageError that lists the first bad rows,
    with their line and column.
    """
    lines = text.split("\n")
    skipped = 1 if lines[0].lower().startswith("sep=") else 0  # Excel names the delimiter in a line of its own
    columns = guess_columns(path, lines[skipped])
    cells = _cells(path, lines[skipped:], columns, first_line=skipped)
    labels = parse_all(cells, lambda where, row: _label(where, row, columns=columns, videos=videos))
    note = columns.message(path.name, _encoding(path))
    frames = (f"{path.name}: {columns.name('start')!r} and {columns.name('end')!r} count frames from 0.",)
    return Labels(labels, (note, *(frames if columns.frames else ())))


def _cells(path: Path, lines: Sequence[str], columns: Columns, *, first_line: int) -> Iterator[tuple[str, str, list[str]]]:
    """Where each row is (for the error, and for the label), and its cells. Rows without any text are left out."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=columns.delimiter, strict=True, skipinitialspace=True)
    try:
        next(reader)
        for row in reader:
            where = f"{path}:{reader.line_num + first_line}"
            if any(map(str.strip, row)):
                yield where, where, [cell.strip() for cell in row]
    except csv.Error as error:
        line = f"{path}:{reader.line_num + first_line}"
        raise UsageError(f"{line}: its double quotes do not close ({error}). Write a quote in a cell twice.") from error


def _label(where: str, cells: list[str], *, columns: Columns, videos: VideoFolder) -> Label:
    expected = len(columns.names)
    if any(cells[expected:]):
        raise UsageError(f"{len(cells)} cells for {expected} columns; a text with a separator in it needs double quotes")
    row = {meaning: cells[index] if index < len(cells) else "" for meaning, index in columns.index.items()}
    for meaning in ("video", "start", "end", "text"):
        if not row[meaning]:
            raise UsageError(f"column {columns.name(meaning)!r} is empty")
    return Label(
        where=where,
        video=row["video"],
        sentence=row["text"],
        windows=_windows(row, columns, videos),
        split=_split(row, columns),
        rating=_rating(row, columns),
    )


def _windows(row: dict[str, str], columns: Columns, videos: VideoFolder) -> tuple[Window, ...]:
    """The moment of a row in seconds; empty where its times are frames of a missing video."""
    if columns.frames or is_timecode(row["start"]) or is_timecode(row["end"]):
        rate = videos.rate_of(row["video"])
        if rate is None:
            return ()
        first, last = (_frame(row, name, columns, rate) for name in ("start", "end"))
        window = frames_to_window(first, last, rate)
    else:
        start, end = (_seconds(row, name, columns) for name in ("start", "end"))
        window = start, end
    if not window[0] < window[1]:
        before = "the same as" if row["end"] == row["start"] else "before"
        end_name, start_name = columns.name("end"), columns.name("start")
        raise UsageError(f"column {end_name!r} is {row['end'][:40]}, {before} column {start_name!r} ({row['start'][:40]})")
    return (window,)


def _seconds(row: dict[str, str], name: str, columns: Columns) -> float:
    try:
        return parse_seconds(row[name], decimal_comma=columns.delimiter != ",")
    except UsageError as error:
        raise UsageError(f"column {columns.name(name)!r}: {error}") from error


def _frame(row: dict[str, str], name: str, columns: Columns, rate: Fraction) -> int:
    text = row[name]
    try:
        if not columns.frames:
            # The end of a timecode is the first frame after the moment, as editors write it.
            return timecode_frame(text, rate) - (name == "end")
        if not _FRAME.fullmatch(text):
            raise UsageError(f"{text[:40]!r} is not the number of a frame")
        return int(text.partition(".")[0])
    except UsageError as error:
        raise UsageError(f"column {columns.name(name)!r}: {error}") from error


def _split(row: dict[str, str], columns: Columns) -> str:
    if "split" not in row:
        return ""
    name = row["split"].lower()
    split = SPLIT_NAMES.get(name, name)
    if split not in SPLITS:
        raise UsageError(f"column {columns.name('split')!r} is {row['split'][:40]!r}, expected train, val or test")
    return split


def _rating(row: dict[str, str], columns: Columns) -> float | None:
    if not row.get("rating"):
        return None
    try:
        rating = float(row["rating"].replace(",", "."))
    except ValueError:
        rating = -1.0
    if not 0 <= rating <= HIGHEST_RATING:
        raise UsageError(f"column {columns.name('rating')!r} is {row['rating'][:40]!r}, expected a number from 0 to 4")
    return rating


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(2)
    return "UTF-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "UTF-8"

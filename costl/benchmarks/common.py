"""What every reader of a benchmark shares: its description, its rows, and helpers that read and check files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from costl.data.annotations import Query, Window, number_in, parse_rows, table_in
from costl.pipeline.errors import UsageError
from costl.pipeline.formats import strict_json
from costl.pipeline.formats.annotations import QUERY_FIELDS, refuse_bad_rows
from costl.pipeline.formats.strict_json import json_lines, read_text

LONG_S = 150.0  # no window of QVHighlights is longer, and a model made for it may miss longer ones
SPLITS = ("train", "val", "test")

# What is corrected in a row or remarkable about it. The report counts rows under these names.
CLIPPED = "windows past the video's end or start, clipped"
DROPPED = "windows reversed, without length or outside the video, dropped"
NO_WINDOW = "rows left without a window, dropped"
LONG = f"windows longer than {LONG_S:.0f} s, kept"
IN_CLIPS = "durations counted in clips of 2 s, now seconds"
OTHER_CUT = "videos of another length than their ratings"

# The duration of a video in seconds, by its name in the annotations. Raises VideoError when it is unknown.
DurationOf = Callable[[str], float]

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Row:
    """A row as a `Query`, and what was corrected in it: one of the names above for each correction.

    `fields` are those of the file that a `Query` does not have.
    """

    query: Query
    quirks: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def qid(self) -> int | str:
        """The id of the query."""
        return self.query.qid


@dataclass(frozen=True)
class Annotations:
    """The rows of a benchmark by split (train, test, and val where it has one), and notes for the user."""

    splits: Mapping[str, Sequence[Row]]
    notes: tuple[str, ...] = ()


Files = Mapping[str, Path]


@dataclass(frozen=True)
class Layout:
    """One set of files in which a benchmark's annotations are distributed.

    `files` lists the possible names of each required file, `extras` those of each optional file. `read` takes the path of
    every file that exists, by the same keys.
    """

    files: Mapping[str, Sequence[str]]
    read: Callable[[Files, DurationOf], Annotations]
    extras: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its name on the command line and in print, its layouts (the preferred one first), and its validation split.

    `val_share` of the training videos are held out for validation, for the reason `val_reason`; None where the benchmark
    has a validation split. The file of a video may have `file_suffix` after its name in the annotations.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    val_share: float | None = None
    val_reason: str = ""
    file_suffix: str = ""


def read_splits(
    files: Files, duration_of: DurationOf, *, parse: Callable[[Mapping[str, Any]], Row] | None = None
) -> Annotations:
    """A JSONL file for each of train, val and test that `files` has. `parse` makes the row of an object; the default takes
    the layout of QVHighlights, clips windows to the video, and accepts rows without labels.

    Raises UsageError that names file and line.
    """
    paths = {split: files[split] for split in SPLITS if split in files}
    return Annotations(
        {split: parse_rows(read_text(path), str(path), parse or row_from_values) for split, path in paths.items()}
    )


def row_from_values(values: Mapping[str, Any]) -> Row:
    """The row of a JSON object in the layout of QVHighlights, with its windows clipped to the video. Raises UsageError."""
    query = Query.from_row({**values, "relevant_windows": None})
    return row_with_windows(query, table_in(values, "relevant_windows", width=2))


def own_row(values: Mapping[str, Any]) -> Row:
    """The row of a JSON object in the project's own layout, with every field that it has. Raises UsageError."""
    row = row_from_values(values)
    fields = {name: value for name, value in values.items() if name not in QUERY_FIELDS}
    is_absent = values.get("relevant_windows") == [] and not row.query.clip_ids  # the sentence is not in the video
    return replace(row, fields=fields | ({"relevant_windows": []} if is_absent else {}))


def row_with_windows(query: Query, windows: Iterable[Sequence[float]]) -> Row:
    """`query` with the `windows` [start, end] in seconds, clipped to its video.

    A window that is reversed, without length or outside the video is dropped. A row that had windows and has none left gets
    the quirk NO_WINDOW.
    """
    usable: list[Window] = []
    quirks: list[str] = []
    for start, end in windows:
        clipped = max(start, 0.0), min(end, query.duration_s)
        if clipped[0] >= clipped[1]:
            quirks.append(DROPPED)
            continue
        usable.append(clipped)
        quirks += [CLIPPED] if clipped != (start, end) else []
        quirks += [LONG] if clipped[1] - clipped[0] > LONG_S else []
    if quirks and not usable:
        quirks.append(NO_WINDOW)
    return Row(replace(query, windows=tuple(usable)), tuple(quirks))


def parse_all(items: Iterable[tuple[Any, ...]], parse: Callable[..., _Parsed]) -> list[_Parsed]:
    """The result of `parse` for every item. An item is where it stands (for errors) and the arguments of `parse`.

    Raises UsageError that lists the first bad items.
    """
    parsed: list[_Parsed] = []
    problems: list[str] = []
    for where, *arguments in items:
        try:
            parsed.append(parse(*arguments))
        except UsageError as error:
            problems.append(f"{where}: {error}.")
    refuse_bad_rows(problems)
    return parsed


def video_items(path: Path) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The videos of a JSON object keyed by video, as items for `parse_all`: (file: vid, vid, fields)."""
    videos = read_json(path)
    return [(f"{path}: {vid}", vid, fields if isinstance(fields, dict) else {}) for vid, fields in videos.items()]


def csv_items(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[tuple[str, dict[str, str]]]:
    """The rows of a table with a header, as items for `parse_all`: (file:line, texts by column).

    Raises UsageError when one of the `columns` is missing.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", delimiter=delimiter)
    names = list(reader.fieldnames or ())
    if not set(columns) <= set(names):
        raise UsageError(f"{path}:1: columns {', '.join(names)}, expected {', '.join(columns)}.")
    return [(f"{path}:{reader.line_num}", row) for row in reader]


def numbered_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, as items for `parse_all`: (file:number, line)."""
    return [(f"{path}:{number}", line.rstrip("\r")) for number, line in json_lines(read_text(path))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises UsageError that names the line where it is not JSON."""
    try:
        value = strict_json.read_json(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a JSON {type(value).__name__}, expected an object with one entry for each video.")
    return value


def positive_in(row: Mapping[str, Any], name: str) -> float:
    """A field that must be a number above zero, also as text ("842"). Raises UsageError."""
    value = row.get(name)
    try:
        number = float(value) if isinstance(value, str) else number_in(row, name)
    except ValueError:
        raise UsageError(f"{name!r} is {value!r}, expected a number") from None
    if not 0 < number < math.inf:
        raise UsageError(f"{name!r} is {value!r}, expected a number above zero")
    return number


def to_row(query: Query) -> dict[str, Any]:
    """A query as a row of the JSONL that `costl.data.annotations.parse_jsonl` reads."""
    row: dict[str, Any] = {
        "qid": query.qid,
        "query": query.query,
        "vid": query.vid,
        "duration": _json_value(query.duration_s),
    }
    if query.windows:
        row["relevant_windows"] = _json_value(query.windows)
    if query.clip_ids:
        row |= {"relevant_clip_ids": list(query.clip_ids), "saliency_scores": _json_value(query.saliency)}
    if query.rated_s:
        row["rated_windows"] = _json_value(query.rated_s)
    return row | ({"domain": query.domain} if query.domain else {})


def _json_value(value: Any) -> Any:
    """Tuples as lists, and whole numbers as integers: 150 rather than 150.0."""
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return int(value) if value == int(value) else value

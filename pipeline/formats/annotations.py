"""The rows of annotation files: JSONL text -> checked `Query` objects."""

from __future__ import annotations

import difflib
import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any, TypeVar

from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.strict_json import abbreviated, json_lines, read_json
from costl.pipeline.grid import Grid
from costl.pipeline.videos import SUFFIXES

RATED_CLIP_S = 2.0  # QVHighlights rates clips of two seconds, whatever the feature grid

Window = tuple[float, float]

QUERY_FIELDS = (
    *("qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"),
    *("rated_windows", "domain"),
)
EXAMPLE = '{"qid": 7, "query": "a dog", "vid": "holiday", "duration": 150, "relevant_windows": [[12, 20]]}'

Row = TypeVar("Row")


@dataclass(frozen=True)
class Query:
    """One sentence about one video, with its labels if it has any.

    `windows` are [start, end) in seconds, inside [0, duration_s]; empty if the row has no label. `clip_ids` are the
    rated clips and `saliency` their ratings, one row for each clip with one rating for each annotator (three in
    QVHighlights, 0 to 4). The rating of all other clips is 0. Rated clips last two seconds, one after the other, unless
    `rated_s` has the start and end of each (YouTube Highlights, where they overlap). `domain` groups the videos of
    TVSum and YouTube Highlights, and `kind` the queries of a report. `cut_s`: by how much a window of the file reached
    outside the video, in seconds; it was cut there. Raises UsageError for a value that is not possible.
    """

    qid: int | str
    query: str
    vid: str
    duration_s: float
    windows: tuple[Window, ...] = ()
    clip_ids: tuple[int, ...] = ()
    saliency: tuple[tuple[float, ...], ...] = ()
    rated_s: tuple[Window, ...] = ()
    domain: str = ""
    kind: str = ""
    cut_s: float = field(default=0.0, compare=False, repr=False)

    def __post_init__(self) -> None:
        fields = vars(self)
        qid_in(fields)
        for name in ("query", "vid"):
            if not text_in(fields, name).strip():
                raise UsageError(f"{name} is empty")
        if number_in(fields, "duration_s") <= 0:
            raise UsageError(f"duration is {self.duration_s!r}, expected seconds above zero")
        for name, width in (("windows", 2), ("saliency", None), ("rated_s", 2)):
            object.__setattr__(self, name, table_in(fields, name, width=width))
        object.__setattr__(self, "clip_ids", _indices(fields, "clip_ids"))
        for window in (*self.windows, *self.rated_s):
            if not 0 <= window[0] < window[1] <= self.duration_s:
                raise UsageError(f"window {list(window)} is not 0 <= start < end <= duration ({self.duration_s})")
        _check_ratings(self.clip_ids, self.saliency)
        clips = expected_clips(self, RATED_CLIP_S)
        if max(self.clip_ids, default=-1) >= clips:
            known = "rated_windows" if self.rated_s else f"clips of two seconds in {self.duration_s:g} s"
            raise UsageError(f"clip {max(self.clip_ids)} is rated, but there are {clips} {known}, counted from 0")

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Query:
        """The query of a QVHighlights, Charades-STA or TACoS row; an absent or null label is empty. Raises UsageError.

        A window that reaches outside the video by less than a rated clip, as rounded times do, is cut there.
        """
        check_field_names(row, fields=QUERY_FIELDS)
        if "label" in row and row.get("saliency_scores") is None:
            # TVSum's own files give `duration` in clips, not in seconds: read as they are, all times would be wrong.
            raise UsageError(
                "'label' is the layout of TVSum and YouTube Highlights, expected 'saliency_scores'; convert the file with "
                "costl prepare"
            )
        missing = [name for name in QUERY_FIELDS[:4] if row.get(name) is None]
        if missing:
            raise UsageError(f"{', '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing")
        duration_s = number_in(row, "duration")
        windows = table_in(row, "relevant_windows", width=2)
        cut = tuple(_cut(window, duration_s) for window in windows)
        return cls(
            qid=qid_in(row),
            query=text_in(row, "query"),
            vid=text_in(row, "vid"),
            duration_s=duration_s,
            windows=cut,  # type: ignore[arg-type]
            clip_ids=_indices(row, "relevant_clip_ids"),
            saliency=table_in(row, "saliency_scores"),
            rated_s=table_in(row, "rated_windows", width=2),  # type: ignore[arg-type]
            domain=text_in(row, "domain") if row.get("domain") is not None else "",
            kind=row["kind"] if isinstance(row.get("kind"), str) else "",
            cut_s=max((max(new[0] - old[0], old[1] - new[1]) for old, new in zip(windows, cut, strict=True)), default=0.0),
        )


def expected_clips(query: Query, clip_s: float) -> int:
    """How many clips can be rated: those of `rated_s`, or else one every `clip_s` seconds."""
    return len(query.rated_s) or Grid(1 / clip_s, query.duration_s).clips


def parse_jsonl(text: str, source: str) -> list[Query]:
    """The queries of an annotation file, in its order; `source` is the name of the file for errors.

    Blank lines are skipped. Raises UsageError that lists the first bad rows as `source:line: problem`; a qid that occurs
    twice is a bad row.
    """
    return parse_rows(text, source, Query.from_row)


def parse_rows(text: str, source: str, make: Callable[[Mapping[str, Any]], Row]) -> list[Row]:
    """The results of `make`, which have a `qid`, for each JSON object of a JSONL text, in its order.

    Raises UsageError as `parse_jsonl` does.
    """
    rows, problems = read_rows(text, source, make)
    refuse_bad_rows(problems)
    return rows


def read_rows(
    text: str, source: str, make: Callable[[Mapping[str, Any]], Row], *, unique: Sequence[str] = ("qid",)
) -> tuple[list[Row], list[str]]:
    """The rows as by `parse_rows`, without the bad ones, and a sentence about each bad one.

    `unique` names the attributes that identify a row.
    """
    rows: list[Row] = []
    line_of: dict[tuple[Any, ...], int] = {}
    problems: list[str] = []
    for number, line in json_lines(text):
        try:
            row: Any = make(json_object(line))
            identity = tuple(getattr(row, name) for name in unique)
            if line_of.setdefault(identity, number) != number:
                names = ", ".join(f"{name} {value!r}" for name, value in zip(unique, identity, strict=True))
                raise UsageError(f"{names} is already on line {line_of[identity]}")
            rows.append(row)
        except UsageError as error:
            problems.append(f"{source}:{number}: {error}.")
    return rows, problems


def refuse_bad_rows(problems: Sequence[str]) -> None:
    """Raises UsageError with the first few `problems`, a line each, and the number of all others. Does nothing without."""
    if problems:
        raise UsageError(first_few(problems, between="\n", last="\n... and "))


def plain_name(vid: str) -> str:
    """The name of a video without the ending of a video file, in Unicode's composed form (NFC)."""
    name = unicodedata.normalize("NFC", vid)
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in SUFFIXES else name


def cut_note(split: str, queries: Sequence[Query]) -> list[str]:
    """A note about the queries with a window that was cut at the end of its video; empty if there is none."""
    cut = [query for query in queries if query.cut_s]
    if not cut:
        return []
    worst = max(cut, key=lambda query: query.cut_s)
    return [
        f"{split}: {len(cut)} queries have a window that reaches outside its video, query {worst.qid!r} by "
        f"{worst.cut_s:.2g} s. These windows are cut there."
    ]


def json_object(line: str) -> dict[str, Any]:
    """A line of JSONL that is one object. Raises UsageError."""
    try:
        row = read_json(line)
    except ValueError as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise UsageError(f"{abbreviated(line.strip(), 30)} is not JSON ({reason})") from error
    if not isinstance(row, dict):
        raise UsageError(f"a JSON {_kind(row)}, expected an object")
    return row


def check_field_names(row: Mapping[str, Any], *, fields: Sequence[str]) -> None:
    """Raises UsageError for an unknown name that looks like a typo; benchmarks add fields of their own."""
    for name in row.keys() - set(fields):
        similar = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
        if similar:
            raise UsageError(f"unknown field {name!r}, did you mean {similar[0]!r}?")


def _value(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise UsageError(f"{name!r} is missing")
    return row[name]


def qid_in(row: Mapping[str, Any]) -> int | str:
    """The id of a row. Raises UsageError unless it is a text, or a whole number of at most 64 bits."""
    value = _value(row, "qid")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"'qid' is {_found(value)}, expected a whole number or a text")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:  # the range of Parquet and other formats
        raise UsageError(f"'qid' is {abbreviated(value)}, expected a whole number of at most 64 bits, or a text")
    return value


def text_in(row: Mapping[str, Any], name: str) -> str:
    """A required field that is a text. Raises UsageError."""
    value = _value(row, name)
    if not isinstance(value, str):
        raise UsageError(f"{name!r} is {_found(value)}, expected a text in double quotes")
    return value


def number_in(row: Mapping[str, Any], name: str) -> float:
    """A required field that is a finite number. Raises UsageError."""
    return _number(_value(row, name), name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name!r} holds {_found(value)}, expected a number")
    # Not isfinite(), which raises OverflowError for whole numbers too large for a float.
    if not abs(value) <= sys.float_info.max:
        raise UsageError(f"{name!r} holds {abbreviated(value)}, expected a finite number")
    return float(value)


def _list_in(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    return () if row.get(name) is None else _list(row[name], name)


def _list(value: Any, name: str, expected: str = "a list") -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name!r} holds {_found(value)}, expected {expected}")
    return value


def numbers_in(row: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """A list of finite numbers; empty if the field is absent or null. Raises UsageError."""
    return tuple(_number(value, name) for value in _list_in(row, name))


def table_in(row: Mapping[str, Any], name: str, *, width: int | None = None) -> tuple[tuple[float, ...], ...]:
    """A list of lists of finite numbers, each `width` long; empty if the field is absent or null. Raises UsageError."""
    example = "[[3], [4]]" if width is None else f"[{[2, 6, 0.9][:width]}]"
    lists = [_list(values, name, f"lists in a list, such as {example}") for values in _list_in(row, name)]
    if width is not None and any(len(values) != width for values in lists):
        raise UsageError(f"{name!r} holds a list that is not {width} numbers long, such as {example}")
    return _plain_table(lists) or tuple(tuple(_number(value, name) for value in values) for values in lists)


def _plain_table(lists: Sequence[Sequence[Any]]) -> tuple[tuple[float, ...], ...] | None:
    """The table if all its values are finite numbers; checked at once, as a benchmark has a million ratings."""
    if not set(map(type, chain.from_iterable(lists))) <= {int, float}:
        return None
    try:
        table = tuple(tuple(map(float, values)) for values in lists)
    except OverflowError:  # a whole number that no float holds
        return None
    return table if all(map(isfinite, chain.from_iterable(table))) else None


def _indices(row: Mapping[str, Any], name: str) -> tuple[int, ...]:
    values = _list_in(row, name)
    if not set(map(type, values)) <= {int}:
        raise UsageError(f"{name!r} holds a value that is not a whole number")
    return tuple(values)


def _cut(window: Sequence[float], duration_s: float) -> Sequence[float]:
    """The window [start, end) in seconds, cut at the ends of the video if it reaches outside by less than a rated clip."""
    start, end = window
    cut = max(start, 0.0), min(end, duration_s)
    return cut if cut[0] < cut[1] and max(cut[0] - start, end - cut[1]) < RATED_CLIP_S else window


def _check_ratings(clip_ids: Sequence[int], saliency: Sequence[Sequence[float]]) -> None:
    if len(clip_ids) != len(saliency):
        raise UsageError(f"{len(clip_ids)} relevant_clip_ids but {len(saliency)} rows of saliency_scores")
    if len(set(clip_ids)) != len(clip_ids) or min(clip_ids, default=0) < 0:
        raise UsageError("relevant_clip_ids repeats a clip or goes below zero")
    if saliency and len({len(ratings) for ratings in saliency} | {0}) != 2:
        raise UsageError("rows of saliency_scores differ in length or are empty, expected one rating per annotator")
    if any(rating < 0 for ratings in saliency for rating in ratings):
        raise UsageError("saliency_scores holds a rating below zero")


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "value", int: "number", float: "number"}
    return kinds.get(type(value), "null" if value is None else type(value).__name__)


def _found(value: Any) -> str:
    return "null" if value is None else f"the {_kind(value)} {abbreviated(value)}"

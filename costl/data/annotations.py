"""The rows of annotation and prediction files: JSONL text -> checked `Query` and `Prediction` objects."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from costl.pipeline.errors import UsageError
from costl.pipeline.formats.strict_json import abbreviated, json_lines, read_json

RATED_CLIP_S = 2.0  # QVHighlights rates clips of two seconds, whatever the feature grid

Window = tuple[float, float]
Moment = tuple[float, float, float]

QUERY_FIELDS = (
    *("qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores"),
    *("rated_windows", "domain"),
)
PREDICTION_FIELDS = ("qid", "query", "vid", "pred_relevant_windows", "pred_saliency_scores")
PROBLEMS_SHOWN = 5


Row = TypeVar("Row")


@dataclass(frozen=True)
class Query:
    """One sentence about one video, with its labels if it has any.

    `windows` are [start, end) in seconds, inside [0, duration_s]; empty if the row has no label. `clip_ids` are the rated
    clips and `saliency` their ratings, one row for each clip with one rating for each annotator (three in QVHighlights, 0
    to 4). The rating of all other clips is 0. Rated clips last two seconds, one after the other, unless `rated_s` has the
    start and end of each (YouTube Highlights, where they overlap). `domain` groups the videos of TVSum and YouTube
    Highlights, and `kind` the queries of a report. Raises UsageError for a value that is not possible.
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

    def __post_init__(self) -> None:
        fields = vars(self)
        _qid(fields)
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
        if self.rated_s and max(self.clip_ids, default=-1) >= len(self.rated_s):
            raise UsageError(f"clip {max(self.clip_ids)} is rated, but there are {len(self.rated_s)} rated_windows")

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Query:
        """The query of a QVHighlights, Charades-STA or TACoS row; an absent or null label is empty. Raises UsageError."""
        _check_field_names(row, fields=QUERY_FIELDS)
        if "label" in row and row.get("saliency_scores") is None:
            # TVSum's own files give `duration` in clips, not in seconds: read as they are, all times would be wrong.
            raise UsageError(
                "'label' is the layout of TVSum and YouTube Highlights, expected 'saliency_scores'; convert the file with "
                "costl prepare"
            )
        return cls(
            qid=_qid(row),
            query=text_in(row, "query"),
            vid=text_in(row, "vid"),
            duration_s=number_in(row, "duration"),
            windows=table_in(row, "relevant_windows", width=2),  # type: ignore[arg-type]
            clip_ids=_indices(row, "relevant_clip_ids"),
            saliency=table_in(row, "saliency_scores"),
            rated_s=table_in(row, "rated_windows", width=2),  # type: ignore[arg-type]
            domain=text_in(row, "domain") if row.get("domain") is not None else "",
            kind=row["kind"] if isinstance(row.get("kind"), str) else "",
        )


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to one query: moments (start_s, end_s, score), and one saliency score for each clip.

    Moments are best first by convention. Their order, overlaps and times are not checked here: published submissions break
    these rules and must still be readable. `costl.metrics` refuses what it cannot score. Lists become tuples.
    """

    qid: int | str
    query: str
    vid: str
    windows: tuple[Moment, ...] = ()
    saliency: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        fields = vars(self)
        _qid(fields)
        text_in(fields, "query")
        text_in(fields, "vid")
        object.__setattr__(self, "windows", table_in(fields, "windows", width=3))
        object.__setattr__(self, "saliency", _numbers(fields, "saliency"))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """The prediction of a row of a QVHighlights submission; an absent list is empty. Raises UsageError."""
        _check_field_names(row, fields=PREDICTION_FIELDS)
        return cls(
            qid=_qid(row),
            query=text_in(row, "query") if "query" in row else "",
            vid=text_in(row, "vid") if "vid" in row else "",
            windows=table_in(row, "pred_relevant_windows", width=3),  # type: ignore[arg-type]
            saliency=_numbers(row, "pred_saliency_scores"),
        )

    def to_row(self) -> dict[str, Any]:
        """The row of a QVHighlights submission, ready for `json.dumps`."""
        return {
            "qid": self.qid,
            "query": self.query,
            "vid": self.vid,
            "pred_relevant_windows": [list(window) for window in self.windows],
            "pred_saliency_scores": list(self.saliency),
        }


def parse_jsonl(text: str, source: str) -> list[Query]:
    """The queries of an annotation file, in its order; `source` is the name of the file for errors.

    Blank lines are skipped. Raises UsageError that lists the first bad rows as `source:line: problem`; a qid that occurs
    twice is a bad row.
    """
    return parse_rows(text, source, Query.from_row)


def parse_predictions(text: str, source: str) -> list[Prediction]:
    """The rows of a submission file, in its order. Raises UsageError as `parse_jsonl` does."""
    return parse_rows(text, source, Prediction.from_row)


def parse_rows(text: str, source: str, make: Callable[[Mapping[str, Any]], Row]) -> list[Row]:
    """The results of `make`, which have a `qid`, for each JSON object of a JSONL text, in its order.

    Raises UsageError as `parse_jsonl` does.
    """
    rows: list[Row] = []
    line_of: dict[int | str, int] = {}
    problems: list[str] = []
    for number, line in json_lines(text):
        try:
            row: Any = make(_json_object(line))
            if line_of.setdefault(row.qid, number) != number:
                raise UsageError(f"qid {row.qid!r} is already on line {line_of[row.qid]}")
            rows.append(row)
        except UsageError as error:
            problems.append(f"{source}:{number}: {error}.")
    if problems:
        raise UsageError("\n".join(first_problems(problems)))
    return rows


def first_problems(problems: Sequence[str]) -> list[str]:
    """The first few problems, and the number of all others."""
    more = len(problems) - PROBLEMS_SHOWN
    return [*problems[:PROBLEMS_SHOWN], *([f"... and {more} more bad rows."] if more > 0 else [])]


def _json_object(line: str) -> dict[str, Any]:
    try:
        row = read_json(line)
    except ValueError as error:
        raise UsageError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UsageError(f"a JSON {_kind(row)}, expected an object")
    return row


def _check_field_names(row: Mapping[str, Any], *, fields: Sequence[str]) -> None:
    # Benchmarks add fields of their own, so an unknown name is accepted, unless it looks like a typo.
    for name in row.keys() - set(fields):
        similar = difflib.get_close_matches(name, fields, n=1, cutoff=0.85)
        if similar:
            raise UsageError(f"unknown field {name!r}, did you mean {similar[0]!r}?")


def _value(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise UsageError(f"{name!r} is missing")
    return row[name]


def _qid(row: Mapping[str, Any]) -> int | str:
    value = _value(row, "qid")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UsageError(f"'qid' is a {_kind(value)}, expected a whole number or a text")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:  # the range of Parquet and other formats
        raise UsageError(f"'qid' is {abbreviated(value)}, expected a whole number of at most 64 bits, or a text")
    return value


def text_in(row: Mapping[str, Any], name: str) -> str:
    """A required field that is a text. Raises UsageError."""
    value = _value(row, name)
    if not isinstance(value, str):
        raise UsageError(f"{name!r} is a {_kind(value)}, expected a text")
    return value


def number_in(row: Mapping[str, Any], name: str) -> float:
    """A required field that is a finite number. Raises UsageError."""
    return _number(_value(row, name), name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name!r} holds a {_kind(value)}, expected a number")
    # Not isfinite(), which raises OverflowError for whole numbers too large for a float.
    if not abs(value) <= sys.float_info.max:
        raise UsageError(f"{name!r} holds {abbreviated(value)}, expected a finite number")
    return float(value)


def _list(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = row.get(name)
    if value is not None and not isinstance(value, list | tuple):
        raise UsageError(f"{name!r} is a {_kind(value)}, expected a list")
    return value or ()


def _numbers(row: Mapping[str, Any], name: str) -> tuple[float, ...]:
    return tuple(_number(value, name) for value in _list(row, name))


def table_in(row: Mapping[str, Any], name: str, *, width: int | None = None) -> tuple[tuple[float, ...], ...]:
    """A list of lists of finite numbers, each `width` long; empty if the field is absent or null. Raises UsageError."""
    table = tuple(_numbers({name: values}, name) for values in _list(row, name))
    if width is not None and any(len(values) != width for values in table):
        raise UsageError(f"{name!r} holds a list that is not {width} numbers long")
    return table


def _indices(row: Mapping[str, Any], name: str) -> tuple[int, ...]:
    values = _list(row, name)
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise UsageError(f"{name!r} holds a value that is not a whole number")
    return tuple(values)


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
    kinds = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return kinds.get(type(value), "null" if value is None else type(value).__name__)

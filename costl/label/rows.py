"""The rows of a label file: checked when they are read, and written with every field that they had."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from costl.data.annotations import Query
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import parse_rows, plain_name, qid_in
from costl.pipeline.formats.strict_json import as_jsonl

Qid = int | str
Row = Mapping[str, Any]

LONGEST_SENTENCE = 500  # characters
MOST_WINDOWS = 1000  # of one sentence in one video
HIGHEST_GRADE = 4
_LARGEST_NEW_QID = 2**53 - 1  # the largest whole number that every JSON reader keeps exactly


@dataclass(frozen=True)
class Label:
    """One sentence about one video: a `row` of the file, and its `version`, which changes with its content."""

    qid: Qid
    row: Row

    @classmethod
    def from_row(cls, row: Row) -> Label:
        """The label of a row. Raises UsageError as `Query.from_row` does."""
        Query.from_row(row)
        return cls(qid_in(row), dict(row))

    @cached_property
    def version(self) -> str:
        """A hash of the row."""
        return hashlib.sha256(json.dumps(self.row, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def query(self) -> Query:
        """The row as a query."""
        return Query.from_row(self.row)

    @cached_property
    def video(self) -> str:
        """The name of the video without the ending of the file, in Unicode's composed form."""
        return plain_name(str(self.row["vid"]))

    @property
    def is_absent(self) -> bool:
        """Whether the sentence is true nowhere in the video: its list of moments is there, and empty."""
        return self.row.get("relevant_windows") == [] and not self.row.get("relevant_clip_ids")

    @property
    def is_open(self) -> bool:
        """Whether the row asks a sentence and has no answer yet."""
        return self.row.get("relevant_windows") is None and not self.row.get("relevant_clip_ids")


Labels = dict[Qid, Label]


def parse_labels(text: str, source: str) -> Labels:
    """The labels of a JSONL text, or of one JSON list, in its order. Raises UsageError that names the lines of bad rows."""
    return {label.qid: label for label in parse_rows(as_jsonl(text), source, Label.from_row)}


def labels_text(labels: Iterable[Label]) -> str:
    """The labels as JSONL."""
    return "".join(f"{json.dumps(label.row, ensure_ascii=False)}\n" for label in labels)


def with_answer(
    row: Row,
    *,
    query: str,
    windows: Sequence[Sequence[float]],
    grades: Mapping[int, float] | None,
    absent: bool,
) -> Row:
    """A row with another sentence and answer; every other field stays.

    `windows` are [start, end) in seconds, `grades` the grades of clips of two seconds by their number, and None leaves them
    as they are. A sentence that is `absent` from the video has an empty list of windows. Raises UsageError for an answer
    that is impossible or empty.
    """
    changed = {**row, "query": _one_line(query)}
    if grades is not None:
        changed |= _rating_fields(grades)
    if absent and (windows or changed.get("relevant_clip_ids")):
        raise UsageError("a sentence that is not in the video can have neither moments nor grades.")
    if len(windows) > MOST_WINDOWS:
        raise UsageError(f"{len(windows)} moments of one sentence, expected at most {MOST_WINDOWS}.")
    changed.pop("relevant_windows", None)
    if windows or absent:
        changed["relevant_windows"] = sorted([[as_number(value) for value in window] for window in windows])
    label = Label.from_row({name: value for name, value in changed.items() if value is not None})
    if label.is_open:
        raise UsageError("no answer. Give a moment or a grade, or say that the sentence is not in this video.")
    return label.row


def free_qid(labels: Iterable[Qid]) -> int:
    """A number above those of all labels."""
    return 1 + max((qid for qid in labels if isinstance(qid, int) and 0 <= qid < _LARGEST_NEW_QID), default=0)


def _one_line(query: str) -> str:
    text = " ".join(query.split())
    if text and not any(map(str.isalnum, text)):
        raise UsageError(f"{text!r}: no letter or digit in it, expected a sentence.")
    if len(text) > LONGEST_SENTENCE:
        raise UsageError(f"a sentence of {len(text)} characters, expected at most {LONGEST_SENTENCE}.")
    return text


def _rating_fields(grades: Mapping[int, float]) -> dict[str, Any]:
    """The fields of ratings by one annotator; None for each if there is none."""
    if not grades:
        return {"relevant_clip_ids": None, "saliency_scores": None}
    if not all(0 <= grade <= HIGHEST_GRADE for grade in grades.values()):
        raise UsageError(f"a grade is not between 0 and {HIGHEST_GRADE}.")
    clips = sorted(grades)
    return {"relevant_clip_ids": clips, "saliency_scores": [[as_number(grades[clip])] for clip in clips]}


def as_number(value: float) -> float:
    """A number with at most three decimals, and a whole one as an integer: 150 rather than 150.0."""
    if not math.isfinite(value):
        raise UsageError(f"{value} is not a finite number.")
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded

"""What crosses the border of a reader of a benchmark, and how its files become checked rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from costl.data.annotations import Query, Window, first_problems, number_in, parse_rows, table_in
from costl.pipeline.errors import UsageError

LONG_S = 150.0  # no window of QVHighlights is longer; a model made for it may miss those that are
RATED_CLIP_S = 2.0

# What may have to be put right in a row, or known about it, in the words of the report.
CLIPPED = "windows past the video's end or start, clipped"
REVERSED = "windows that end before they start, dropped"
EMPTY = "windows without length, dropped"
OUTSIDE = "windows outside the video, dropped"
LOST = "rows left without a window, dropped"
LONG = f"windows longer than {LONG_S:.0f} s, kept"
IN_CLIPS = "durations counted in clips of 2 s, now seconds"
OTHER_CUT = "videos of another length than their ratings"

# Seconds that a video lasts, by its name in the annotations; raises VideoError saying why there is none to tell.
Seconds = Callable[[str], float]

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Row:
    """One row in this project's terms, and what was put right in it: one of the names above for each time."""

    query: Query
    quirks: tuple[str, ...] = ()

    @property
    def qid(self) -> int | str:
        """The row's own name."""
        return self.query.qid


@dataclass(frozen=True)
class Reading:
    """A benchmark as read: its rows by split (train, test, and val where it has one), and what a person should know."""

    splits: Mapping[str, Sequence[Row]]
    notes: tuple[str, ...] = ()


Files = Mapping[str, Path]


@dataclass(frozen=True)
class Layout:
    """One way in which a benchmark's annotations are spread.

    `files` are the names that each part goes by, any of which will do; `extras` are parts that help where they are
    there. `read` takes the path of every part found.
    """

    files: Mapping[str, Sequence[str]]
    read: Callable[[Files, Seconds], Reading]
    extras: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its name on the command line and in print, its layouts (the best first), and its validation split.

    `val_share` of the training videos are held out for validation, for the reason `val_why`; None where the benchmark
    has a validation split. `stems` are the names that the file of a video may have, without suffix.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    val_share: float | None = None
    val_why: str = ""
    stems: Callable[[str], Sequence[str]] = lambda vid: (vid,)


def read_windows(path: Path) -> list[Row]:
    """The rows of a JSONL file in the layout of QVHighlights, their windows made usable; a row may have no label.

    Raises UsageError that names file and line.
    """
    return parse_rows(read_text(path), str(path), _window_row)


def window_row(query: Query, windows: Iterable[Sequence[float]]) -> Row:
    """`query` with those of `windows` [start, end] in seconds that lie inside its video, or are clipped to it.

    A row that had windows and is left without one has the quirk LOST.
    """
    kept: list[Window] = []
    quirks: list[str] = []
    for start, end in windows:
        inside = max(start, 0.0), min(end, query.duration_s)
        if problem := _unusable(start, end, query.duration_s):
            quirks.append(problem)
            continue
        kept.append(inside)
        quirks += [CLIPPED] if inside != (start, end) else []
        quirks += [LONG] if inside[1] - inside[0] > LONG_S else []
    if quirks and not kept:
        quirks.append(LOST)
    return Row(replace(query, windows=tuple(kept)), tuple(quirks))


def collect(items: Iterable[tuple[str, _Item]], make: Callable[[_Item], _Made]) -> list[_Made]:
    """What `make` makes of every item; `items` come with the place that an error is to name.

    Raises UsageError that lists the first bad ones.
    """
    made, problems = [], []
    for place, item in items:
        try:
            made.append(make(item))
        except UsageError as error:
            problems.append(f"{place}: {error}.")
    if problems:
        raise UsageError("\n".join(first_problems(problems)))
    return made


def by_video(path: Path) -> list[tuple[str, tuple[str, Mapping[str, Any]]]]:
    """The videos of a JSON file keyed by video, ready for `collect`: (place, (vid, what is said of it))."""
    found = read_json(path)
    return [(f"{path}: {vid}", (vid, about if isinstance(about, dict) else {})) for vid, about in found.items()]


def lines_of(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not blank, ready for `collect`: (file:number, line)."""
    # Not splitlines(): it also cuts at U+2028 and its kin, which may stand inside a sentence.
    lines = enumerate(read_text(path).removeprefix("\ufeff").split("\n"), start=1)
    return [(f"{path}:{number}", line.rstrip("\r")) for number, line in lines if line.strip()]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises UsageError naming the line that is no JSON."""
    try:
        found = json.loads(read_text(path), parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: a JSON {type(found).__name__}, expected an object with one entry for each video.")
    return found


def read_text(path: Path) -> str:
    """The text of a file. Raises UsageError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).") from error


def positive_in(row: Mapping[str, Any], name: str) -> float:
    """A field that must be a number above zero, as text ("842") or plainly. Raises UsageError."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            row = {name: float(value)}
        except ValueError:
            raise UsageError(f"{name!r} is {value!r}, expected a number") from None
    if number_in(row, name) <= 0:
        raise UsageError(f"{name!r} is {value!r}, expected a number above zero")
    return number_in(row, name)


def to_row(query: Query) -> dict[str, Any]:
    """The row of a query in this project's JSONL; `annotations.parse_jsonl` reads it back."""
    row: dict[str, Any] = {
        "qid": query.qid,
        "query": query.query,
        "vid": query.vid,
        "duration": _plain(query.duration_s),
    }
    if query.windows:
        row["relevant_windows"] = _plain(query.windows)
    if query.clip_ids:
        row |= {"relevant_clip_ids": list(query.clip_ids), "saliency_scores": _plain(query.saliency)}
    if query.rated_s:
        row["rated_windows"] = _plain(query.rated_s)
    return row | ({"domain": query.domain} if query.domain else {})


def _window_row(values: Mapping[str, Any]) -> Row:
    query = Query.from_row({**values, "relevant_windows": None})
    return window_row(query, table_in(values, "relevant_windows", width=2))


def _unusable(start: float, end: float, duration_s: float) -> str:
    if start > end:
        return REVERSED
    if start == end:
        return EMPTY
    return OUTSIDE if end <= 0 or start >= duration_s else ""


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number JSON knows")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _plain(value: Any) -> Any:
    """Lists for tuples, and whole numbers as such: 150 rather than 150.0."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return int(value) if value == int(value) else value

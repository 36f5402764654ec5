"""The answer of a model about one video and one query."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError
from costl.plots.terminal_text import bar, clock, one_line, sparkline


@dataclass(frozen=True)
class Moment:
    """[start_s, end_s) of a video. `score` in [0, 1] ranks the moments of one answer."""

    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Saliency:
    """How well each clip matches the query: unbounded scores [t] of consecutive clips of `clip_s` seconds."""

    clip_s: float
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """The moments of one video that match one query, best first, the saliency of every clip, and `notes` for the user.

    `confidence` in [0, 1]: how sure it is that the query is in the video at all; None where it is not known. If it is too low,
    there are no `moments`, and what was found is in `below`. Prints as a table in a terminal and as a picture with
    thumbnails in a notebook.
    """

    query: str
    video: Path
    duration_s: float
    moments: tuple[Moment, ...]
    saliency: Saliency
    notes: tuple[str, ...] = ()
    below: tuple[Moment, ...] = ()
    confidence: float | None = None

    def top(self, count: int) -> Answer:
        """The same answer with only the `count` best moments. Raises UsageError unless `count` is a number from 0 on."""
        if not (isinstance(count, Integral) and count >= 0):
            raise UsageError(f"count is {count!r}, expected a number of moments, 0 or more.")
        return replace(self, moments=self.moments[:count], below=self.below[:count])

    def to_row(self) -> dict[str, Any]:
        """The answer as plain values, ready for `json.dumps`."""
        row = asdict(self)
        return {"video": str(row.pop("video")), **row}

    def __repr__(self) -> str:
        return self.table()

    def table(self, *, show_below: bool = False, grey: Callable[[str], str] = str) -> str:
        """The answer as lines of text. `show_below` adds the moments below the threshold, each line passed through `grey`."""
        lines = [f"{one_line(self.video.name)} · {clock(self.duration_s)} · {one_line(self.query)}", *_rows(self.moments)]
        if self.below:
            lines.append("      no match in this video")
        if self.below and show_below:
            lines += map(grey, ["      below the threshold:", *_rows(self.below)])
        lines.append(f"      {sparkline(self.saliency.scores)}  saliency")
        lines += [f"      note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_png_(self) -> bytes:
        from costl.ask.picture import draw_answers

        return draw_answers([self])


def _rows(moments: Sequence[Moment]) -> list[str]:
    times = [f"{clock(m.start_s)} – {clock(m.end_s)}" for m in moments]
    width = max(map(len, times), default=0)
    return [
        f"{rank:4}  {time:{width}}  {m.score:.2f}  {bar(m.score)}".rstrip()
        for rank, (time, m) in enumerate(zip(times, moments, strict=True), start=1)
    ]


def clip_spans(count: int, clip_s: float, duration_s: float) -> tuple[tuple[float, float], ...]:
    """[start, end) in seconds of `count` consecutive clips of a video; the last one ends with the video."""
    starts_s = [i * clip_s for i in range(count)]
    return tuple(pairwise([*starts_s, duration_s]))


def check_queries(queries: Sequence[str]) -> None:
    """Raises UsageError if there is no query, or for one that is not a UTF-8 text with a letter or a digit in it."""
    if not queries:
        raise UsageError('no query. Describe what to look for, such as "a dog catches a ball".')
    for query in queries:
        # Python reads bytes of the command line that are not UTF-8 as surrogates.
        if not isinstance(query, str) or re.search("[\ud800-\udfff]", query):
            problem = "not a text in UTF-8"
        elif not any(letter.isalnum() for letter in query):
            problem = "no letter or digit in it"
        else:
            continue
        raise UsageError(f'query {query!r}: {problem}. Describe what to look for, such as "a dog catches a ball".')

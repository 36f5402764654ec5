"""What a search of a library returns: hits, best first, as a table in a terminal and as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from costl.plots.terminal_text import bar, clock, one_line

_BAR = 20  # characters


@dataclass(frozen=True)
class Hit:
    """One moment [start_s, end_s) of a library that answers a query; `name` is the path of the video relative to the library.

    `video` is the absolute path at which the file was indexed. `score` in [0, 1] is comparable between videos and queries.
    """

    query: str
    name: str
    video: Path
    duration_s: float
    start_s: float
    end_s: float
    score: float

    def to_row(self) -> dict[str, Any]:
        """The hit as plain values, ready for `json.dumps`."""
        return {**asdict(self), "video": str(self.video)}


@dataclass(frozen=True)
class SearchResult:
    """The hits of one query, best first, and those below the threshold, which are no answers.

    `videos` were searched, by the model `answered_by`. `notes` are for the user. Prints as a table in a terminal, and as
    pictures in a notebook.
    """

    query: str
    hits: tuple[Hit, ...]
    below: tuple[Hit, ...] = ()
    videos: int = 0
    answered_by: str = ""
    notes: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The result as plain values, ready for `json.dumps`."""
        return {
            "query": self.query,
            "videos": self.videos,
            "answered_by": self.answered_by,
            "hits": [hit.to_row() for hit in self.hits],
            "below": [hit.to_row() for hit in self.below],
            "notes": list(self.notes),
        }

    def table(self, *, show_below: bool = False, grey: Callable[[str], str] = str) -> str:
        """The hits as lines of text. `show_below` adds those below the threshold, each line passed through `grey`."""
        lines = [" · ".join(map(one_line, filter(None, [self.query, _count(self.videos), self.answered_by])))]
        shown = [*self.hits, *self.below] if show_below else list(self.hits)
        rows = _table_rows(shown)
        lines += rows[: len(self.hits)]
        if not self.hits:
            lines.append(f"      no match in {_count(self.videos)}")
        if rows[len(self.hits) :]:
            lines += map(grey, ["      below the threshold:", *rows[len(self.hits) :]])
        lines += [f"      note: {note}" for note in self.notes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def _repr_png_(self) -> bytes:
        from costl.search.export.picture import draw_results

        return draw_results([self])


def ranked_result(
    query: str,
    hits: Sequence[Hit],
    threshold: float,
    answered_by: str,
    notes: tuple[str, ...] = (),
    *,
    videos: int,
    top: int,
    min_score: float | None,
) -> SearchResult:
    """The result with the `top` best of all hits of a query, and of those below `min_score`, by default `threshold`."""
    threshold = threshold if min_score is None else min_score
    ranked = sorted(hits, key=lambda hit: (-hit.score, hit.name, hit.start_s))
    good = [hit for hit in ranked if hit.score >= threshold]
    below = [hit for hit in ranked if hit.score < threshold]
    return SearchResult(query, tuple(good[:top]), tuple(below[:top]), videos, answered_by, notes)


def _count(videos: int) -> str:
    return f"{videos:,} video{'s' * (videos != 1)}"


def _table_rows(hits: Sequence[Hit]) -> list[str]:
    """A line for each hit: rank, time, score and video. The name is last, since its width is unknown."""
    times = [f"{clock(hit.start_s)} – {clock(hit.end_s)}" for hit in hits]
    width = max(map(len, times), default=0)
    return [
        f"{rank:4}  {time:{width}}  {hit.score:.2f}  {bar(hit.score):{_BAR}}  {one_line(hit.name)}"
        for rank, (time, hit) in enumerate(zip(times, hits, strict=True), start=1)
    ]

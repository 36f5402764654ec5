"""The library page's HTML: search field, filters, and a card with a thumbnail and a curve for each moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from costl.pipeline.videos import printable
from costl.plots.pages import load_templates
from costl.search.export.formats import FORMATS
from costl.search.hits import Hit, SearchResult

_CURVE_POINTS = 100
_FORMATS = {
    "csv": "CSV table",
    "table": "Text table",
    "json": "JSON",
    "jsonl": "JSON lines",
    "edl": "EDL, for editors",
    "otio": "OpenTimelineIO",
    "srt": "SRT subtitles",
    "vtt": "WebVTT subtitles",
    "chapters": "Chapters of a video site",
    "ffmetadata": "Chapters for FFmpeg",
}


@dataclass(frozen=True)
class Card:
    """A moment on the page: its `rank` from 0 on, the `key` of its video, and the cosines of all clips of the video.

    `span`: the least and the greatest cosine on the page, the common scale of its curves.
    """

    rank: int
    hit: Hit
    key: str
    cosines: Float[np.ndarray, "t"]
    clip_s: float
    span: tuple[float, float]

    @property
    def folder(self) -> str:
        """The folder of the video with a slash at its end, or nothing."""
        parent = str(PurePosixPath(self.hit.name).parent)
        return "" if parent == "." else f"{printable(parent)}/"

    @property
    def file(self) -> str:
        """The name of the file."""
        return printable(PurePosixPath(self.hit.name).name)

    @property
    def best_s(self) -> float:
        """The centre of the moment's most similar clip."""
        first = min(int(self.hit.start_s / self.clip_s), len(self.cosines) - 1)
        last = max(first + 1, int(np.ceil(self.hit.end_s / self.clip_s)))
        centre_s = (first + int(self.cosines[first:last].argmax()) + 0.5) * self.clip_s
        return min(max(centre_s, self.hit.start_s), self.hit.end_s)

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve as points (seconds, y) of an SVG of height 1, from the start to the end of the video.

        In a long video a point is the greatest of several clips.
        """
        group = -(-len(self.cosines) // _CURVE_POINTS)
        starts = np.arange(0, len(self.cosines), group)
        low, high = self.span
        heights = (np.maximum.reduceat(self.cosines, starts) - low) / ((high - low) or 1.0)
        ys = (0.95 - 0.9 * heights).tolist()
        duration_s = self.hit.duration_s
        xs = [min((start + group / 2) * self.clip_s, duration_s) for start in starts.tolist()]
        points = zip([0.0, *xs, duration_s], [ys[0], *ys, ys[-1]], strict=True)
        return [(round(x, 2), round(y, 3)) for x, y in points]


def page_html() -> str:
    """The HTML of the whole page."""
    return load_templates("costl.demo").get_template("library.html").render()


def results_html(
    search: str, result: SearchResult, cards: Sequence[Card], *, filtered: bool, has_more: bool
) -> str:
    """The HTML of a result with its cards: those of the hits, then those below the threshold.

    `search` is the key of the result for exports. `filtered`: whether filters left out videos. `has_more`: whether a search
    for more moments may find some.
    """
    count = len(result.hits)
    formats = {name: _FORMATS.get(name, name) for name in [*_FORMATS, *FORMATS] if name in FORMATS}
    return str(
        _macros().results(search, result, cards[:count], cards[count:], formats, filtered=filtered, has_more=has_more)
    )


def problem_html(message: str) -> str:
    """The HTML of an error message."""
    return str(_macros().problem(message))


def problem_page(message: str) -> str:
    """The HTML of a whole page with an error message."""
    return load_templates("costl.demo").get_template("problem.html").render(message=message)


def asset(name: str) -> str:
    """The text of the page's CSS or script."""
    return load_templates("costl.demo").get_template(name).render()


def _macros() -> Any:
    return load_templates("costl.demo").get_template("library_results.html").module

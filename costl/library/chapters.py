"""The hits of one video as chapters: for FFmpeg, which writes them into a video file, and as the list that video sites read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from costl.ask.formats import whole_ms
from costl.library.hits import Hit
from costl.plots.terminal_text import one_line

BEGINNING = ";FFMETADATA1\n;CoSTL\n"


def ffmetadata(hits: Sequence[Hit]) -> str:
    """Chapters in FFmpeg's metadata format, by time. A chapter ends where the next one begins: players show one at a time."""
    spans_ms = [(*whole_ms(hit.start_s, hit.end_s), hit.query) for hit in hits]
    titles = _titles([(start_ms, query) for start_ms, _, query in spans_ms])
    starts_ms = list(titles)
    blocks = [BEGINNING]
    for start_ms, next_ms in zip(starts_ms, [*starts_ms[1:], math.inf], strict=True):
        end_ms = min(next_ms, max(end for start, end, _ in spans_ms if start == start_ms))
        # A backslash goes before each character that has a meaning there.
        title = re.sub(r"([=;#\\])", r"\\\1", titles[start_ms])
        blocks.append(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start_ms}\nEND={end_ms}\ntitle={title}\n")
    return "\n".join(blocks)


def chapter_list(hits: Sequence[Hit]) -> str:
    """A line `h:mm:ss title` for each hit, by time. Sites need a line at 0, which gets the name of the video.

    Times are rounded down to the second, so that a link to one shows the start of the moment.
    """
    if not hits:
        return ""
    titles = _titles([(math.floor(hit.start_s + 1e-6), hit.query) for hit in hits])
    titles = {0: one_line(hits[0].video.stem), **titles}
    return "".join(f"{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02} {title}\n" for s, title in titles.items())


def _titles(starts: Sequence[tuple[int, str]]) -> dict[int, str]:
    """start -> title, by time. Hits that begin together share a chapter."""
    queries: dict[int, list[str]] = {}
    for start, query in sorted(starts):
        queries.setdefault(start, []).append(one_line(query))
    return {start: " / ".join(dict.fromkeys(titles)) for start, titles in queries.items()}

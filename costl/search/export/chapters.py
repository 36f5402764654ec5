"""The hits of one video as chapters: for FFmpeg, which writes them into a video file, and as the list that video sites read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

from costl.ask.formats import whole_ms
from costl.plots.terminal_text import one_line
from costl.search.hits import Hit

BEGINNING = ";FFMETADATA1\n;CoSTL\n"


def ffmetadata(hits: Sequence[Hit]) -> str:
    """Chapters in FFmpeg's metadata format, by time. A chapter ends where the next one begins: players show one at a time.

    The first one begins at 0 and gets the name of the video, unless a hit does: MP4 has no time before its first chapter.
    """
    spans_ms = [whole_ms(hit.start_s, hit.end_s) for hit in hits]
    titles = _titles(hits, [start_ms for start_ms, _ in spans_ms])
    ends_ms = dict(sorted(spans_ms))  # of those that begin together, the last end
    blocks = [BEGINNING]
    for start_ms, next_ms in pairwise([*titles, max(ends_ms.values(), default=0)]):
        end_ms = min(next_ms, ends_ms.get(start_ms, next_ms))
        blocks.append(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start_ms}\nEND={end_ms}\ntitle={_escape(titles[start_ms])}\n")
    return "\n".join(blocks)


def _escape(title: str) -> str:
    """The title with a backslash before each character that has a meaning in FFmpeg's metadata.

    FFmpeg takes any backslash at the end of a line for one that continues the line, so that a space follows it there.
    """
    return re.sub(r"([=;#\\])", r"\\\1", title) + " " * title.endswith("\\")


def chapter_list(hits: Sequence[Hit]) -> str:
    """A line `hh:mm:ss title` for each hit, by time. Sites need a line at 0: it gets the name of the video, unless a hit does.

    Times are rounded down to the second, so that a link to one shows the start of the moment.
    """
    titles = _titles(hits, [math.floor(hit.start_s + 1e-6) for hit in hits])
    return "".join(f"{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02} {title}\n" for s, title in titles.items())


def _titles(hits: Sequence[Hit], starts: Sequence[int]) -> dict[int, str]:
    """start -> title, by time, from 0 on. Hits that begin together share a chapter."""
    queries: dict[int, list[str]] = {}
    for start, query in sorted(zip(starts, [one_line(hit.query) for hit in hits], strict=True)):
        queries.setdefault(start, []).append(query)
    titles = {start: " / ".join(dict.fromkeys(same_start)) for start, same_start in queries.items()}
    return {0: one_line(hits[0].video.stem), **titles} if hits else {}

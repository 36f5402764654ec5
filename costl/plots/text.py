"""Times, numbers and sentences as people read them in a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

_BAR, _CURVE = 20, 60  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"


def clock(second: float) -> str:
    """m:ss, or h:mm:ss from an hour on, rounded to the second."""
    minutes, seconds = divmod(round(second), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def one_line(text: str) -> str:
    """Without line breaks and control characters, which would move the cursor of a terminal or end a cue."""
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text).split())


def sparkline(scores: Sequence[float], width: int = _CURVE) -> str:
    """The scores as blocks of eight heights, from their lowest to their highest; more than `width` are averaged."""
    columns = min(width, len(scores))
    edges = [round(i * len(scores) / columns) for i in range(columns + 1)]
    means = [sum(scores[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_HEIGHTS[min(7, int(8 * (mean - low) / span))] for mean in means)


def bar(score: float) -> str:
    """A score in [0, 1] as a bar of up to twenty characters."""
    whole, part = divmod(round(score * _BAR * 8), 8)
    return _EIGHTHS[8] * whole + _EIGHTHS[part].strip()


def tick_step(duration_s: float, most: int = 10) -> float:
    """The finest step of a time axis with at most so many ticks, a round number of seconds."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    return next((step for step in steps if duration_s / step <= most), math.ceil(duration_s / most))

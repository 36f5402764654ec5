"""Times, scores and queries as text for terminals, plots and pages."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

_BAR, _CURVE = 20, 60  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def clock(second: float) -> str:
    """m:ss, or h:mm:ss from an hour on, rounded to the second."""
    minutes, seconds = divmod(round(second), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which would move the cursor of a terminal or end a cue."""
    printable = [" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text]
    return " ".join("".join(printable).split())


def sparkline(scores: Sequence[float]) -> str:
    """The scores as blocks of eight heights, scaled to their range. More than sixty scores are averaged."""
    columns = min(_CURVE, len(scores))
    edges = [round(i * len(scores) / columns) for i in range(columns + 1)]
    means = [sum(scores[a:b]) / (b - a) for a, b in pairwise(edges)]
    low = min(means)
    span = (max(means) - low) or 1.0
    return "".join(_HEIGHTS[min(7, int(8 * (mean - low) / span))] for mean in means)


def bar(score: float) -> str:
    """A score in [0, 1] as a bar of up to twenty characters."""
    full_blocks, eighths = divmod(round(score * _BAR * 8), 8)
    return _EIGHTHS[8] * full_blocks + _EIGHTHS[eighths].strip()


def ticks(duration_s: float, most: int = 10) -> list[float]:
    """The ticks of a time axis in seconds, from 0 to `duration_s` in the smallest round step that gives at most `most`."""
    step_s = next((step for step in _TICK_STEPS_S if duration_s / step <= most), math.ceil(duration_s / most))
    return [i * step_s for i in range(int(duration_s / step_s + 1e-6) + 1)]

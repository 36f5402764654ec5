"""Predicted times on a grid, as published models round them before scoring."""

from __future__ import annotations

import math
from dataclasses import replace

from costl.annotations import Prediction, Window


def rounded(prediction: Prediction, duration_s: float, unit_s: float) -> Prediction:
    """Times to the nearest multiple of `unit_s`, inside the video and start before end; 0 leaves them as they are.

    Published models do it before scoring: to 2 s on QVHighlights and TACoS, to 1 s on Charades-STA.
    """
    if unit_s == 0:
        return prediction
    windows = tuple((*_on_grid(start, end, duration_s, unit_s), score) for start, end, score in prediction.windows)
    return replace(prediction, windows=windows)


def _on_grid(start: float, end: float, duration_s: float, unit_s: float) -> Window:
    a, b = round(start / unit_s), round(end / unit_s)
    if a >= b or a * unit_s >= duration_s:
        a = min(math.floor((start + end) / 2 / unit_s), math.ceil(duration_s / unit_s) - 1)
        b = max(b, a + 1)
    # Nine decimals: 3 * 0.1 is written 0.3.
    return round(a * unit_s, 9), min(round(b * unit_s, 9), duration_s)

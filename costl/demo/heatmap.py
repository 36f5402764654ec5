"""The weights of the patches as a heatmap over a video frame."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

_HEAT_COLOR = np.array([255.0, 96.0, 32.0])


def overlay_heatmap(
    frame: UInt8[np.ndarray, "height width 3"],
    weights: Float[np.ndarray, "rows columns"],
    box: tuple[float, float, float, float],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws the weights of the patches over a frame. The largest weight gets the full colour.

    `box` is the area that the patches cover, in pixels: top, left, bottom, right. The frame is darkened outside of it.
    """
    top, left, bottom, right = box
    rows, columns = weights.shape
    y = ((np.arange(frame.shape[0]) + 0.5 - top) / (bottom - top)) * rows - 0.5
    x = ((np.arange(frame.shape[1]) + 0.5 - left) / (right - left)) * columns - 0.5
    relative = weights / max(float(weights.max()), 1e-9)
    heat = _interpolate_rows(_interpolate_rows(relative, y).T, x).T[..., None]
    rows_inside = (y >= -0.5) & (y <= rows - 0.5)
    columns_inside = (x >= -0.5) & (x <= columns - 0.5)
    inside = (rows_inside[:, None] & columns_inside[None])[..., None]
    opacity = 0.85 * np.sqrt(heat) * inside  # the square root makes small weights visible
    dimmed = np.where(inside, 0.75, 0.35) * frame
    return np.round(dimmed * (1 - opacity) + _HEAT_COLOR * opacity).astype(np.uint8)


def _interpolate_rows(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Linear interpolation between the rows of `values` at fractional indices, with the first and last row outside."""
    indices = np.clip(indices, 0, len(values) - 1)
    low = np.minimum(indices.astype(int), max(0, len(values) - 2))
    high = np.minimum(low + 1, len(values) - 1)
    fraction = (indices - low)[:, None]
    return values[low] * (1 - fraction) + values[high] * fraction

"""The weights of the patches as a heatmap over a video frame."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_HEAT_COLOR = np.array([255.0, 96.0, 32.0])


def overlay_heatmap(
    frame: UInt8[np.ndarray, "height width 3"],
    weights: Float[np.ndarray, "rows columns"],
    region: tuple[float, float, float, float],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws the weights of the patches over a frame. The largest weight gets the full colour.

    `region` is what the patches cover: (left, top, width, height) as shares of the frame. The rest of it is darkened.
    """
    height, width = frame.shape[:2]
    left, top, covered_width, covered_height = np.round(np.array(region) * [width, height, width, height]).astype(int)
    relative = (weights / max(float(weights.max()), 1e-9)).astype(np.float32)
    # The square root makes small weights visible.
    heat = Image.fromarray(np.sqrt(relative)).resize((covered_width, covered_height), Image.Resampling.BILINEAR)
    brightness = Image.new("F", (width, height), 0.35)
    opacity = Image.new("F", (width, height))
    brightness.paste(0.75, (left, top, left + covered_width, top + covered_height))
    opacity.paste(heat, (left, top))
    visible = 0.85 * np.asarray(opacity)[..., None]
    dimmed = np.asarray(brightness)[..., None] * frame
    return np.round(dimmed * (1 - visible) + _HEAT_COLOR * visible).astype(np.uint8)

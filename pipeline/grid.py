"""The feature grid: which clip stands for which seconds of a video, the one object both stages share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from costl.pipeline.errors import UsageError


@dataclass(frozen=True)
class Grid:
    """`duration_s` seconds of video at `fps` clips a second.

    There are T = max(1, ceil(duration_s * fps - 0.5)) clips; clip i covers [i/fps, (i+1)/fps) and is shown by the frame
    on screen at its centre. Raises UsageError unless both numbers are finite and above zero.
    """

    fps: float
    duration_s: float

    def __post_init__(self) -> None:
        for name, value in (("fps", self.fps), ("duration_s", self.duration_s)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"feature grid: {name} is {value!r}, expected a finite number above zero.")

    @property
    def clips(self) -> int:
        """T, the number of clips."""
        # Rounded first, so that 0.1 * 3-like noise in duration * fps never adds a clip.
        return max(1, math.ceil(round(self.duration_s * self.fps, 6) - 0.5))

    @property
    def clip_s(self) -> float:
        """Length of one clip in seconds."""
        return 1.0 / self.fps

    def centres_s(self) -> np.ndarray:
        """Centre of every clip, seconds [t]; a video shorter than half a clip is asked for its own middle."""
        centres_s = (np.arange(self.clips) + 0.5) / self.fps
        return np.where(centres_s < self.duration_s, centres_s, self.duration_s / 2)

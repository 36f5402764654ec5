"""The feature grid, which both stages share: which seconds of a video each clip covers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costl.pipeline.errors import UsageError


@dataclass(frozen=True)
class Grid:
    """`duration_s` seconds of video at `fps` clips a second.

    There are t = max(1, ceil(duration_s * fps - 0.5)) clips. Clip i covers the seconds [i/fps, (i+1)/fps); its features are
    those of the frame on screen at its centre. Raises UsageError unless both numbers are finite and above zero.
    """

    fps: float
    duration_s: float

    def __post_init__(self) -> None:
        for name, value in (("fps", self.fps), ("duration_s", self.duration_s)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"feature grid: {name} is {value!r}, expected a finite number above zero.")

    @property
    def clips(self) -> int:
        """The number of clips, t."""
        # Rounded first, so that rounding errors such as that of 0.1 * 3 never add a clip.
        return max(1, math.ceil(round(self.duration_s * self.fps, 6) - 0.5))

    @property
    def clip_s(self) -> float:
        """The length of a clip in seconds."""
        return 1.0 / self.fps

    def centres_s(self) -> np.ndarray:
        """The centre of each clip, seconds [t]; of a video shorter than half a clip, the middle of the video."""
        centres_s = (np.arange(self.clips) + 0.5) / self.fps
        return np.where(centres_s < self.duration_s, centres_s, self.duration_s / 2)

    def within(self, window: range) -> range:
        """The clips of a window that exist; empty if the video ends before it."""
        return range(min(window.start, self.clips), min(window.stop, self.clips))

    def of_window(self, window: range) -> Grid:
        """The grid of these clips alone, as if they were a video; `window` must not be empty and must be inside."""
        assert 0 <= window.start < window.stop <= self.clips, (window, self.clips)
        end_s = self.duration_s if window.stop == self.clips else window.stop * self.clip_s
        return Grid(self.fps, end_s - window.start * self.clip_s)

    def clips_of(self, windows: Sequence[range]) -> np.ndarray:
        """The distinct clips of these windows that exist, rising, int [k]."""
        is_inside = np.zeros(self.clips, dtype=bool)
        for window in windows:
            is_inside[window.start : window.stop] = True
        return np.flatnonzero(is_inside)

"""Windows of stored videos, as if each were a video of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.grid import Grid


class Piece(NamedTuple):
    """Some clips of a stored video."""

    video: str
    clips: range


@dataclass(frozen=True)
class WindowedFeatures:
    """The features of `windows`, by name: each is the clips of its pieces in `features`, one after the other."""

    features: CacheReader
    windows: Mapping[str, Sequence[Piece]]

    @property
    def fps(self) -> float:
        """Clips a second."""
        return self.features.fps

    @property
    def joint(self) -> JointSpace:
        """The space of frames and sentences."""
        return self.features.joint

    @property
    def video_ids(self) -> list[str]:
        """The names of the windows."""
        return list(self.windows)

    def grid(self, name: str) -> Grid:
        """The clips of this window, and how long it is."""
        grids = [self.features.grid(video).of_window(clips) for video, clips in self.windows[name]]
        return Grid(self.fps, sum(grid.duration_s for grid in grids))

    def tokens(self, name: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        """See `CacheReader.tokens`; `clips` count from the start of the window."""
        pieces = [self.features.tokens(p.video, clips=_slice(p), patches=patches) for p in self.windows[name]]
        return _join(pieces)[clips if isinstance(clips, slice) else list(clips)]

    def joint_vectors(self, name: str, *, clips: slice | Sequence[int] = slice(None)) -> Float[np.ndarray, "t e"]:
        """See `CacheReader.joint_vectors`; `clips` count from the start of the window."""
        pieces = [self.features.joint_vectors(p.video, clips=_slice(p)) for p in self.windows[name]]
        return _join(pieces)[clips if isinstance(clips, slice) else list(clips)]

    def words(self, query: str) -> SentenceTokens:
        """See `CacheReader.words`."""
        return self.features.words(query)


VideoFeatures = CacheReader | WindowedFeatures


def _slice(piece: Piece) -> slice:
    return slice(piece.clips.start, piece.clips.stop)


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

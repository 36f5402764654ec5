"""Walks a long video in overlapping windows and puts together what the model says of each, as if it had seen the whole.

clips      0       64      128     192     256     320
window 0   |===========----|                            a window speaks for the positions in its middle half (=),
window 1           |---========----|                    the first and the last as far as the video's ends; for
window 2                   |---========----|            saliency it speaks everywhere, with less weight near its
window 3                           |---============|    edges
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from costl.data.annotations import Query
from costl.data.batch import Batch, Features, collate
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.grid import Grid

QUERIES_AT_ONCE = 8  # about one window: its patches are held once for each of them


@dataclass(frozen=True)
class Said:
    """What a model says of a batch, on the CPU: `scores` in [0, 1] and `spans` (clips) of every position, where each
    stands (`centres`, clips), which of them are `positions` of the video and not padding, `saliency` of every clip."""

    scores: Float[Tensor, "b n"]
    spans: Float[Tensor, "b n 2"]
    positions: Bool[Tensor, "b n"]
    centres: Float[Tensor, "n"]
    saliency: Float[Tensor, "b t"]


def windows(clips: int, size: int) -> list[range]:
    """Windows of at most `size` clips over `clips` of them: each begins half a window after the one before.

    One window where that is enough. `size` must be a multiple of four, so that halves and quarters are whole.
    """
    starts = range(0, max(1, clips - size // 2), size // 2)
    return [range(start, min(start + size, clips)) for start in starts]


def walk(
    queries: Sequence[Query],
    features: Features,
    *,
    ask: Callable[[Batch], Said],
    size: int,
    patches: bool,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Said:
    """What is said of one long video, position by position, for `queries` that all ask about it.

    Reads the features of one window at a time. `ask` is the model; `tell` hears how many windows are done.
    """
    clips = features.grid(queries[0].vid).clips
    places = windows(clips, size)
    parts: list[Said] = []
    total = torch.zeros(len(queries), clips, dtype=torch.float64)
    weight = torch.zeros(clips, dtype=torch.float64)
    for number, place in enumerate(places):
        said = ask(_window_batch(queries, features, place, patches=patches))
        parts.append(_spoken_for(said, place, size=size, last=place.stop == clips))
        share = _certainty(len(place))
        total[:, place.start : place.stop] += said.saliency.double() * share
        weight[place.start : place.stop] += share
        tell(number + 1, len(places))
    return Said(
        scores=torch.cat([part.scores for part in parts], 1),
        spans=torch.cat([part.spans for part in parts], 1),
        positions=torch.cat([part.positions for part in parts], 1),
        centres=torch.cat([part.centres for part in parts]),
        saliency=(total / weight).float(),
    )


def by_video(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Queries about one video together, a few at a time."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.vid, []).append(query)
    for group in groups.values():
        for start in range(0, len(group), QUERIES_AT_ONCE):
            yield group[start : start + QUERIES_AT_ONCE]


def _window_batch(queries: Sequence[Query], features: Features, place: range, *, patches: bool) -> Batch:
    part = WindowOf(features, place)
    # Without its truth: that is told in the seconds of the whole video, and nobody learns here.
    bare = [Query(q.qid, q.query, q.vid, part.grid(q.vid).duration_s) for q in queries]
    return collate(bare, part, patches=patches)


def _spoken_for(said: Said, place: range, *, size: int, last: bool) -> Said:
    """The positions in the window's own stretch, moved to where they are in the video."""
    begin = 0 if place.start == 0 else size // 4
    end = len(place) if last else size // 4 + size // 2
    own = (said.centres >= begin) & ((said.centres < end) | last)
    return replace(
        said,
        scores=said.scores[:, own],
        spans=said.spans[:, own] + place.start,
        positions=said.positions[:, own],
        centres=said.centres[own] + place.start,
    )


def _certainty(clips: int) -> Float[Tensor, "t"]:
    """Weight of each clip of a window: its distance to the window's nearer edge, in clips."""
    at = torch.arange(clips, dtype=torch.float64) + 0.5
    return torch.minimum(at, clips - at)


class WindowOf:
    """Some of a video's clips as a video of their own; words and everything else are those of the cache."""

    def __init__(self, features: Features, place: range):
        self._features, self._place = features, place
        self.fps: float = features.fps
        self.patch_grid: tuple[int, int] = features.patch_grid
        self.joint: Joint = features.joint

    def grid(self, video_id: str) -> Grid:
        """The grid of these clips alone."""
        return Grid(self.fps, len(self._place) / self.fps)

    def tokens(self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        """Their tokens, float16 [t 1+p c]; `clips` are counted within the window. No others are read."""
        some = self._place[clips] if isinstance(clips, slice) else [self._place[clip] for clip in clips]
        return self._features.tokens(video_id, clips=some, patches=patches)

    def words(self, query: str) -> Words:
        """The words of a query."""
        return self._features.words(query)

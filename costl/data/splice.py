"""Splicing: training videos whose parts are put in another order, left out, or replaced by parts of other videos.

Every moment stays whole, so its ends stay known. A few sentences are then seen at many places and among many other clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

MAX_CUTS = 3
DROP_SHARE = 0.3  # of the videos with a part that may be left out
REPLACE_SHARE = 0.5  # of the parts that may be replaced
Targets = tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "t"], Bool[np.ndarray, "t"]]


class Part(NamedTuple):
    """The clips [start, stop) of the video with this index in the batch."""

    video: int
    start: int
    stop: int


class VideoLabels(NamedTuple):
    """What the queries of a batch know about a video: all `moments` in clips, and which clips are `labelled`."""

    moments: Float[np.ndarray, "m 2"]
    labelled: Bool[np.ndarray, "t"]


def draw_parts(
    videos: Sequence[VideoLabels], *, share: float, generator: torch.Generator
) -> tuple[tuple[Part, ...], ...]:
    """The parts of each video of a batch. About `share` of the videos are spliced; the others have no parts.

    No cut is inside a moment. Only parts without labelled clips are left out or replaced, and only by clips without a
    label: a sentence of the batch is not known to be true there.
    """
    draw = _Draw(generator)
    return tuple(_splice(video, videos, draw) if draw.happens(share) else () for video in range(len(videos)))


def splice_targets(targets: Targets, parts: Sequence[Part], video: int, longest: int) -> Targets:
    """The targets of a query about `video` (see `query_targets`) where its parts are put together, for `longest` clips."""
    moments, ratings, relevant = targets
    spliced = moments.copy(), np.zeros(longest), np.zeros(longest, bool)
    offset = 0
    for part in parts:
        clips, place = slice(part.start, part.stop), slice(offset, offset + part.stop - part.start)
        if part.video == video:
            is_inside = (moments[:, 0] >= part.start) & (moments[:, 1] <= part.stop)
            spliced[0][is_inside] = moments[is_inside] + (offset - part.start)
            spliced[1][place] = ratings[clips]
            spliced[2][place] = relevant[clips]
        offset = place.stop
    return spliced


class _Draw:
    """Random numbers of one generator."""

    def __init__(self, generator: torch.Generator):
        self._generator = generator

    def happens(self, probability: float) -> bool:
        return float(torch.rand((), generator=self._generator)) < probability

    def below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self._generator))

    def order(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self._generator).tolist()


def _splice(video: int, videos: Sequence[VideoLabels], draw: _Draw) -> tuple[Part, ...]:
    moments, labelled = videos[video]
    places = np.arange(2, len(labelled) - 1)  # a single clip is no part
    is_inside = ((moments[:, :1] < places) & (places < moments[:, 1:])).any(0)
    allowed = places[~is_inside]
    if not len(allowed):
        return ()
    cuts = sorted({int(allowed[draw.below(len(allowed))]) for _ in range(1 + draw.below(MAX_CUTS))})
    edges = [0, *cuts, len(labelled)]
    parts = [Part(video, edges[i], edges[i + 1]) for i in draw.order(len(edges) - 1)]
    parts = _without_one(parts, labelled, draw) if draw.happens(DROP_SHARE) else parts
    return tuple(_replaced(part, videos, draw) if _is_free(part, labelled) else part for part in parts)


def _is_free(part: Part, labelled: Bool[np.ndarray, "t"]) -> bool:
    return not labelled[part.start : part.stop].any()


def _without_one(parts: list[Part], labelled: Bool[np.ndarray, "t"], draw: _Draw) -> list[Part]:
    free = [part for part in parts if _is_free(part, labelled)]
    if not free or len(parts) == 1:
        return parts
    left_out = free[draw.below(len(free))]
    return [part for part in parts if part != left_out]


def _replaced(part: Part, videos: Sequence[VideoLabels], draw: _Draw) -> Part:
    """For some parts as many clips of another video, if it has so many in a row without a label."""
    other = draw.below(len(videos))
    if other == part.video or not draw.happens(REPLACE_SHARE):
        return part
    length = part.stop - part.start
    labels_before = np.concatenate([[0], np.cumsum(videos[other].labelled)])
    last_start = len(labels_before) - 1 - length
    starts = np.flatnonzero(labels_before[length:] == labels_before[: last_start + 1]) if last_start >= 0 else np.array([])
    if not len(starts):
        return part
    start = int(starts[draw.below(len(starts))])
    return Part(other, start, start + length)

"""Training-free moments: a curve of similarities between a sentence and the clips of a video, cut into segments.

Axes: t clips of a video, w windows of a curve, c cells of a window.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from costl.pipeline.errors import UsageError

WINDOW_CELLS = 64  # a clip is compared with this many neighbours at most: about two minutes at 0.5 clips a second
MAX_OVERLAP = 0.5  # IoU of two segments, at most: a moment and its better half may both be candidates
WINDOWS_PER_MOMENT = 4  # windows of each resolution that are searched, for each moment that is returned


class Segment(NamedTuple):
    """The clips [start, end) of a video. `score` >= 0 ranks the segments of one sentence in one video."""

    start: int
    end: int
    score: float


def find_segments(
    curve: Float[np.ndarray, "t"], *, logit_scale: float, limit: int = 10, max_overlap: float = MAX_OVERLAP
) -> list[Segment]:
    """At most `limit` segments of a curve of cosines, best first. There is always one.

    A clip's evidence is the logarithm of its share of the softmax over its window, divided by the share of an average clip.
    The score of a segment is the sum of the evidence of its clips. Of two segments with an IoU above `max_overlap`, only the
    better one is returned; at 0 no two overlap. A curve without any contrast gives the whole video with score 0.

    Long curves are searched in overlapping windows at several resolutions, so that a segment may have any length. There the
    sum is over cells of the resolution, and is multiplied by the likelihood of the window around the segment, relative to the
    best window of the video. Of windows after the first few of each resolution nothing is returned.

    `logit_scale` is that of the encoder's joint space. Raises UsageError for an empty or a non-finite curve.
    """
    if curve.ndim != 1 or len(curve) == 0 or not np.isfinite(curve).all():
        raise UsageError(f"A similarity curve has shape {curve.shape}; expected one finite number for each clip, at least one.")
    logits = curve.astype(np.float64) * logit_scale
    candidates = np.concatenate(_search_all_resolutions(logits, limit, max_overlap))
    candidates[:, :2] = candidates[:, :2].clip(max=len(curve))
    best = suppress_overlaps(candidates, limit, max_overlap)
    segments = [Segment(int(start), int(end), float(score)) for start, end, score in best]
    return segments or [Segment(0, len(curve), 0.0)]


def log_mean_exp(logits: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "..."]:
    """The logarithm of the mean of the exponentials along the last axis."""
    highest = logits.max(axis=-1, keepdims=True)
    return highest[..., 0] + np.log(np.exp(logits - highest).mean(axis=-1))


def suppress_overlaps(
    candidates: Float[np.ndarray, "m 3"], limit: int, max_overlap: float = MAX_OVERLAP
) -> Float[np.ndarray, "m 3"]:
    """At most `limit` rows (start, end, score), best first, of which no two have an IoU above `max_overlap`."""
    order = np.lexsort([candidates[:, 1], candidates[:, 0], -candidates[:, 2]])
    remaining = candidates[order]
    chosen: list[np.ndarray] = []
    while len(remaining) and len(chosen) < limit:
        best = remaining[0]
        chosen.append(best)
        remaining = remaining[_iou(best, remaining) <= max_overlap]
    return np.array(chosen).reshape(-1, 3)


def _search_all_resolutions(
    logits: Float[np.ndarray, "t"], limit: int, max_overlap: float
) -> list[Float[np.ndarray, "m 3"]]:
    """Candidates at cells of 1, 2, 4 ... clips, until one window holds the video."""
    local = _local_likelihood(logits)
    candidates = [_search_windows(logits, local, limit, max_overlap)]
    cell = 1
    while len(logits) > cell * WINDOW_CELLS:
        cell *= 2
        starts = np.arange(0, len(logits), cell)
        means = np.add.reduceat(logits, starts) / np.diff(np.append(starts, len(logits)))
        of_cells = _search_windows(means, np.maximum.reduceat(local, starts), limit, max_overlap)
        candidates.append(of_cells * [cell, cell, 1])
    return candidates


def _local_likelihood(logits: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """The likelihood of the best window around each clip, relative to the best window of the video: at most 1."""
    starts, size = _window_starts(len(logits))
    of_windows = log_mean_exp(logits[starts[:, None] + np.arange(size)])
    best = np.full(len(logits), -np.inf)
    for start, likelihood in zip(starts, of_windows, strict=True):
        around = best[start : start + size]
        np.maximum(around, likelihood, out=around)
    return np.exp(best - best.max())


def _search_windows(
    cells: Float[np.ndarray, "c"], local: Float[np.ndarray, "c"], limit: int, max_overlap: float
) -> Float[np.ndarray, "m 3"]:
    """Candidates of the likeliest windows: start and end in cells, and the weighted score.

    A segment weighs as much as its window, relative to the best one, but at most as much as its `local` likelihood.
    """
    starts, size = _window_starts(len(cells))
    windows = cells[starts[:, None] + np.arange(size)]
    likelihood = log_mean_exp(windows)
    weights = np.exp(likelihood - likelihood.max())
    candidates = []
    for window in np.argsort(-weights, kind="stable")[: WINDOWS_PER_MOMENT * limit]:
        start = int(starts[window])
        segments = _positive_segments(windows[window] - likelihood[window])
        segments[:, :2] += start
        # A segment that a window cuts off lies inside another window, or inside one of larger cells.
        cut_off = ((segments[:, 0] == start) & (start > 0)) | ((segments[:, 1] == start + size) & (start + size < len(cells)))
        best = suppress_overlaps(segments[~cut_off], limit, max_overlap)
        for segment in best:
            segment[2] *= min(weights[window], local[int(segment[0]) : int(segment[1])].max())
        candidates.append(best)
    return np.concatenate(candidates)


def _window_starts(count: int) -> tuple[Int[np.ndarray, "w"], int]:
    """First cells of windows that overlap by half and cover `count` cells, and the size of each."""
    size = min(WINDOW_CELLS, count)
    inner = np.arange(0, count - size, max(size // 2, 1))
    return np.append(inner, count - size), size


def _positive_segments(evidence: Float[np.ndarray, "c"]) -> Float[np.ndarray, "m 3"]:
    """All segments with a positive sum: start, end, sum."""
    sums = np.append(0.0, evidence.cumsum())
    totals = sums[None, :] - sums[:, None]
    # Rounding alone must not make a segment.
    start, end = np.nonzero(np.triu(totals > 1e-9, k=1))
    return np.stack([start, end, totals[start, end]], axis=1)


def _iou(one: Float[np.ndarray, "3"], many: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m"]:
    overlap = np.clip(np.minimum(one[1], many[:, 1]) - np.maximum(one[0], many[:, 0]), 0, None)
    union = (one[1] - one[0]) + (many[:, 1] - many[:, 0]) - overlap
    return overlap / union

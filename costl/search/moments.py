"""Training-free moments: a curve of similarities between a sentence and the clips of a video, cut into segments.

Axes: t clips of a video, w windows of a curve, c cells of a window, n clips of a library, k short list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from costl.pipeline.errors import UsageError

WINDOW_CELLS = 64  # a clip is compared with this many neighbours at most: about two minutes at 0.5 clips a second
MAX_OVERLAP = 0.5  # IoU of two moments of an answer, at most
WINDOWS_PER_MOMENT = 4  # windows of each resolution that are searched, for each moment that is returned


class Segment(NamedTuple):
    """The clips [start, end) of a video. `score` >= 0 ranks the segments of one sentence in one video."""

    start: int
    end: int
    score: float


def find_segments(curve: Float[np.ndarray, "t"], *, logit_scale: float, limit: int = 10) -> list[Segment]:
    """At most `limit` segments of a curve of cosines, best first. There is always one.

    A clip's evidence is the logarithm of its share of the softmax over its window, divided by the share of an average clip.
    The score of a segment is the sum of the evidence of its clips. Of two segments that overlap by more than MAX_OVERLAP,
    only the better one is returned. A curve without any contrast gives one segment, the whole video, with score 0.

    Long curves are searched in overlapping windows at several resolutions, so that a segment may have any length. There the
    score is in cells of the resolution, and is multiplied by the likelihood of the window relative to the best window.

    `logit_scale` is that of the encoder's joint space. Raises UsageError for an empty or a non-finite curve.
    """
    if curve.ndim != 1 or len(curve) == 0 or not np.isfinite(curve).all():
        raise UsageError(f"A similarity curve has shape {curve.shape}; expected one finite number for each clip, at least one.")
    logits = curve.astype(np.float64) * logit_scale
    candidates = np.concatenate(_search_all_resolutions(logits, limit))
    candidates[:, :2] = candidates[:, :2].clip(max=len(curve))
    best = suppress_overlaps(candidates, limit)
    segments = [Segment(int(start), int(end), float(score)) for start, end, score in best]
    return segments or [Segment(0, len(curve), 0.0)]


def shortlist(similarities: Float[np.ndarray, "n"], starts: Int[np.ndarray, "v"], count: int) -> Int[np.ndarray, "k"]:
    """Indices of at most `count` videos, that with the most similar clip first.

    `starts` are the first clips of the videos, rising from 0; no video is empty.
    """
    best = np.maximum.reduceat(similarities, starts)
    count = min(count, len(best))
    chosen = np.argpartition(-best, count - 1)[:count]
    return chosen[np.lexsort([chosen, -best[chosen]])]


def log_mean_exp(logits: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "..."]:
    """The logarithm of the mean of the exponentials along the last axis."""
    highest = logits.max(axis=-1, keepdims=True)
    return highest[..., 0] + np.log(np.exp(logits - highest).mean(axis=-1))


def suppress_overlaps(candidates: Float[np.ndarray, "m 3"], limit: int) -> Float[np.ndarray, "m 3"]:
    """At most `limit` rows (start, end, score), best first, of which no two have an IoU above MAX_OVERLAP."""
    order = np.lexsort([candidates[:, 1], candidates[:, 0], -candidates[:, 2]])
    remaining = candidates[order]
    chosen = []
    while len(remaining) and len(chosen) < limit:
        best = remaining[0]
        chosen.append(best)
        remaining = remaining[_iou(best, remaining) <= MAX_OVERLAP]
    return np.array(chosen).reshape(-1, 3)


def _search_all_resolutions(logits: Float[np.ndarray, "t"], limit: int) -> list[Float[np.ndarray, "m 3"]]:
    """Candidates at cells of 1, 2, 4 ... clips, until one window holds the video."""
    found = [_search_windows(logits, limit)]
    cell = 1
    while len(logits) > cell * WINDOW_CELLS:
        cell *= 2
        found.append(_search_windows(_mean_of_cells(logits, cell), limit) * [cell, cell, 1])
    return found


def _mean_of_cells(logits: Float[np.ndarray, "t"], cell: int) -> Float[np.ndarray, "c"]:
    """Means over `cell` clips; the last cell may have fewer."""
    starts = np.arange(0, len(logits), cell)
    counts = np.diff(np.append(starts, len(logits)))
    return np.add.reduceat(logits, starts) / counts


def _search_windows(cells: Float[np.ndarray, "t"], limit: int) -> Float[np.ndarray, "m 3"]:
    """Candidates of the likeliest windows of half overlap: start and end in cells, and the score."""
    size = min(WINDOW_CELLS, len(cells))
    starts = np.unique(np.append(np.arange(0, len(cells) - size, max(size // 2, 1)), len(cells) - size))
    windows = cells[starts[:, None] + np.arange(size)]
    likelihood = log_mean_exp(windows)
    chosen = np.argsort(-likelihood, kind="stable")[: WINDOWS_PER_MOMENT * limit]
    weights = np.exp(likelihood[chosen] - likelihood.max())
    candidates = []
    for start, window, level, weight in zip(starts[chosen], windows[chosen], likelihood[chosen], weights, strict=True):
        segments = suppress_overlaps(_positive_segments(window - level), limit)
        candidates.append(segments * [1, 1, weight] + [start, start, 0])
    return np.concatenate(candidates)


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

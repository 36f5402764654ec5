"""What each query should predict, on the clips of its video: moments, ratings, relevant clips."""

from __future__ import annotations

import numpy as np

from costl.data.annotations import RATED_CLIP_S, Query
from costl.pipeline.annotations import moment_start_limit_clips
from costl.pipeline.grid import Grid

HIGHEST_RATING = 4.0


def query_targets(query: Query, grid: Grid, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments [m 2] in clips, ratings [t] in [0, 1] and which clips [t] are inside a moment, padded to `longest` clips."""
    moments = _moments_in_clips(query, grid)
    centres = np.arange(longest) + 0.5
    relevant: np.ndarray = np.any((centres >= moments[:, :1]) & (centres < moments[:, 1:]), axis=0)
    if not query.clip_ids:
        return moments, relevant.astype(np.float64), relevant
    return moments, _ratings(query, centres / grid.fps), relevant


def empty_targets(longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The targets of a negative pair, in the shapes of `query_targets`."""
    return np.zeros((0, 2)), np.zeros(longest), np.zeros(longest, bool)


def _moments_in_clips(query: Query, grid: Grid) -> np.ndarray:
    """The windows of a query in clips [m 2], cut at the ends of the video, without those that become empty."""
    moments = np.array(query.windows, np.float64).reshape(-1, 2) * grid.fps
    starts_in_tail = (moments[:, 0] >= grid.clips) & (moments[:, 0] < moment_start_limit_clips(grid))
    moments[starts_in_tail, 0] = grid.clips - 1
    moments = np.clip(moments, 0, grid.clips)
    return moments[moments[:, 1] > moments[:, 0]]


def _ratings(query: Query, centres_s: np.ndarray) -> np.ndarray:
    """The rating [t] in [0, 1] at each time: the mean over the annotators; 0 where nothing is rated."""
    rating_of_clip = np.zeros(int(max(query.clip_ids)) + 2)
    rating_of_clip[list(query.clip_ids)] = np.mean(query.saliency, axis=1) / HIGHEST_RATING
    if query.rated_s:
        return _mean_of_covering_windows(np.array(query.rated_s), rating_of_clip, centres_s)
    rated_clip = np.minimum((centres_s / RATED_CLIP_S).astype(int), len(rating_of_clip) - 1)
    return rating_of_clip[rated_clip]


def _mean_of_covering_windows(windows_s: np.ndarray, ratings: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Mean rating [t] of the rated windows, start and end in seconds, that cover each time; 0 where none does."""
    covers = (windows_s[:, 0] <= times_s[:, None]) & (times_s[:, None] < windows_s[:, 1])
    values = np.zeros(len(windows_s))
    values[: len(ratings)] = ratings[: len(windows_s)]
    return covers @ values / np.maximum(1, covers.sum(1))

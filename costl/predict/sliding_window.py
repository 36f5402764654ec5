"""Runs the model over a long video in overlapping windows and merges the outputs, as if it had seen the whole video.

clips      0       64      128     192     256     320
window 0   |===========----|                            a window owns the positions in its middle half (=), the first
window 1           |---========----|                    and the last window up to the ends of the video; saliency is a
window 2                   |---========----|            weighted mean over all windows, with less weight near the edges
window 3                           |---============|    of a window
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
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.grid import Grid

MAX_QUERIES_PER_BATCH = 8  # about the same video; the patches of a window are in memory once for each of them


@dataclass(frozen=True)
class ModelOutput:
    """The output of the model for a batch, on the CPU.

    `scores` in [0, 1], `spans` and `centres` (both in clips) are those of each position; `position_mask` is False for
    padding. `saliency` is that of every clip.
    """

    scores: Float[Tensor, "b n"]
    spans: Float[Tensor, "b n 2"]
    position_mask: Bool[Tensor, "b n"]
    centres: Float[Tensor, "n"]
    saliency: Float[Tensor, "b t"]


def predict_windows(
    queries: Sequence[Query],
    features: Features,
    *,
    run_model: Callable[[Batch], ModelOutput],
    window_clips: int,
    patches: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ModelOutput:
    """The merged output for `queries` about one long video, in windows of `window_clips` clips.

    Reads the features of one window at a time. `progress` is called with the number of windows that are done, and of all.
    """
    clips = features.grid(queries[0].vid).clips
    windows = window_ranges(clips, window_clips)
    outputs: list[ModelOutput] = []
    saliency = torch.zeros(len(queries), clips, dtype=torch.float64)
    total_weight = torch.zeros(clips, dtype=torch.float64)
    for number, window in enumerate(windows, start=1):
        output = run_model(_window_batch(queries, features, window, patches=patches))
        is_last = window.stop == clips
        outputs.append(_owned_positions(output, window, window_clips=window_clips, is_last=is_last))
        weight = _edge_weight(len(window))
        saliency[:, window.start : window.stop] += output.saliency.double() * weight
        total_weight[window.start : window.stop] += weight
        progress(number, len(windows))
    return ModelOutput(
        scores=torch.cat([output.scores for output in outputs], 1),
        spans=torch.cat([output.spans for output in outputs], 1),
        position_mask=torch.cat([output.position_mask for output in outputs], 1),
        centres=torch.cat([output.centres for output in outputs]),
        saliency=(saliency / total_weight).float(),
    )


def window_ranges(clips: int, window_clips: int) -> list[range]:
    """Windows of at most `window_clips` clips over a video; each starts half a window after the one before.

    A single window if the video fits into it. `window_clips` must be a multiple of four, so that halves and quarters are
    whole.
    """
    starts = range(0, max(1, clips - window_clips // 2), window_clips // 2)
    return [range(start, min(start + window_clips, clips)) for start in starts]


def group_by_video(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """The queries about each video, at most MAX_QUERIES_PER_BATCH at a time."""
    groups: dict[str, list[Query]] = {}
    for query in queries:
        groups.setdefault(query.vid, []).append(query)
    for group in groups.values():
        for start in range(0, len(group), MAX_QUERIES_PER_BATCH):
            yield group[start : start + MAX_QUERIES_PER_BATCH]


def _window_batch(queries: Sequence[Query], features: Features, window: range, *, patches: bool) -> Batch:
    window_features = WindowFeatures(features, window)
    # Without labels, which are in seconds of the whole video; prediction does not need them.
    unlabelled = [Query(q.qid, q.query, q.vid, window_features.grid(q.vid).duration_s) for q in queries]
    return collate(unlabelled, window_features, patches=patches)


def _owned_positions(output: ModelOutput, window: range, *, window_clips: int, is_last: bool) -> ModelOutput:
    """The positions that the window owns, with spans and centres in clips of the whole video."""
    start = 0 if window.start == 0 else window_clips // 4
    end = len(window) if is_last else window_clips // 4 + window_clips // 2
    owned = (output.centres >= start) & ((output.centres < end) | is_last)
    return replace(
        output,
        scores=output.scores[:, owned],
        spans=output.spans[:, owned] + window.start,
        position_mask=output.position_mask[:, owned],
        centres=output.centres[owned] + window.start,
    )


def _edge_weight(clips: int) -> Float[Tensor, "t"]:
    """Weight of each clip of a window: its distance to the nearer edge, in clips."""
    centres = torch.arange(clips, dtype=torch.float64) + 0.5
    return torch.minimum(centres, clips - centres)


class WindowFeatures:
    """Some clips of a video as a video of their own; everything else is as in the cache."""

    def __init__(self, features: Features, window: range):
        self._features = features
        self._window = window
        self.fps: float = features.fps
        self.patch_grid: tuple[int, int] = features.patch_grid
        self.joint: JointSpace = features.joint

    def grid(self, video_id: str) -> Grid:
        """The grid of the clips of the window."""
        return Grid(self.fps, len(self._window) / self.fps)

    def tokens(self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        """Tokens of the window, float16 [t 1+p c]; `clips` count from its start. Reads no others."""
        video_clips = self._window[clips] if isinstance(clips, slice) else [self._window[clip] for clip in clips]
        return self._features.tokens(video_id, clips=video_clips, patches=patches)

    def words(self, query: str) -> SentenceTokens:
        """The words of a query."""
        return self._features.words(query)

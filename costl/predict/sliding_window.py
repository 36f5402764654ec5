"""Runs the model over a long video in overlapping windows and merges the outputs, as if it had seen the whole video.

clips      0       64      128     192     256     320
window 0   |===========----|                            a window owns the positions in its middle half (=), the first
window 1           |---========----|                    and the last window up to the ends of the video; saliency is a
window 2                   |---========----|            weighted mean over all windows, with less weight near the edges
window 3                           |---============|    of a window
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from costl.data.annotations import Query
from costl.data.batch import Features, model_inputs
from costl.model.inputs import ModelInputs
from costl.predict.postprocess import ModelOutput


def predict_windows(
    queries: Sequence[Query],
    features: Features,
    *,
    run_model: Callable[[ModelInputs], ModelOutput],
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
        output = run_model(model_inputs(queries, features, patches=patches, clips=slice(window.start, window.stop)))
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


def windows_around(middles: Sequence[float], clips: int, window_clips: int) -> list[range]:
    """The windows of `window_clips` clips around these positions in a longer video, in order, each once.

    A window begins at a multiple of a quarter of its length, with the position at most an eighth away from its middle unless
    the video ends there.
    """
    step = window_clips // 4
    last = -(-(clips - window_clips) // step)  # the first one that reaches the end
    numbers = {min(max(0, round((middle - window_clips / 2) / step)), last) for middle in middles}
    return [range(number * step, min(number * step + window_clips, clips)) for number in sorted(numbers)]


def window_quarters(window: range, window_clips: int) -> list[range]:
    """The quarters of a window; the last one is shorter, or missing, where the video ends."""
    step = window_clips // 4
    return [range(start, min(start + step, window.stop)) for start in range(window.start, window.stop, step)]


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

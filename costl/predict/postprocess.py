"""Outputs of the heads -> predictions in seconds: windows inside the video, sorted, finite, after soft-NMS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from costl.config import Predict
from costl.data.annotations import RATED_CLIP_S, Prediction, Query
from costl.model.spans import soft_nms
from costl.pipeline.grid import Grid

CANDIDATES = 60  # positions with the best scores that enter soft-NMS, for each window of a video
MIN_LENGTH_CLIPS = 0.25  # of a predicted window


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


def to_predictions(
    queries: Sequence[Query],
    output: ModelOutput,
    settings: Predict,
    *,
    clips: Sequence[int],
    clip_s: float,
    windows: int = 1,
) -> list[Prediction]:
    """One prediction for each query: at most `moments` windows (start_s, end_s, score), best first, and the saliency.

    Query i has `clips[i]` clips of `clip_s` seconds. The CANDIDATES positions with the best scores for each of the `windows`
    of the video enter soft-NMS. Predicted windows are inside [0, duration] and start before they end. The best one is kept
    even below `min_score`, so that every query has one.
    """
    # The same number for each window: one strong moment, predicted at many positions, must not crowd out the others.
    candidates = CANDIDATES * windows
    predictions = []
    for i, query in enumerate(queries):
        mask = output.position_mask[i]
        best = output.scores[i].masked_fill(~mask, -1).topk(min(candidates, int(mask.sum()))).indices
        spans_s = output.spans[i, best].double() * clip_s
        spans_s = _clip_to_video(spans_s, query.duration_s, MIN_LENGTH_CLIPS * clip_s)
        scores = output.scores[i, best].double()
        if settings.round_s:
            spans_s, scores = _round_and_merge(spans_s, scores, query.duration_s, settings.round_s)
        ranked = soft_nms(spans_s, scores, sigma=settings.nms_sigma, keep=settings.moments)
        ranked = ranked[(ranked[:, 2] >= settings.min_score) | (torch.arange(len(ranked)) == 0)]
        moments = tuple((float(start), float(end), float(score)) for start, end, score in ranked)
        saliency = tuple(output.saliency[i, : clips[i]].tolist())
        predictions.append(Prediction(query.qid, query.query, query.vid, moments, saliency))
    return predictions


def _clip_to_video(spans_s: Float[Tensor, "m 2"], duration_s: float, min_length_s: float) -> Float[Tensor, "m 2"]:
    """Spans clipped to the video; those that are then shorter than `min_length_s` grow to it around their middle."""
    min_length_s = min(min_length_s, duration_s)
    middle = spans_s.clamp(0, duration_s).mean(-1).clamp(min_length_s / 2, duration_s - min_length_s / 2)
    start = torch.minimum(spans_s[:, 0].clamp(0, duration_s), middle - min_length_s / 2)
    end = torch.maximum(spans_s[:, 1].clamp(0, duration_s), middle + min_length_s / 2)
    return torch.stack([start.clamp(min=0), end.clamp(max=duration_s)], -1)


def _round_and_merge(
    spans_s: Float[Tensor, "m 2"], scores: Float[Tensor, "m"], duration_s: float, unit_s: float
) -> tuple[Float[Tensor, "r 2"], Float[Tensor, "r"]]:
    """Spans rounded to multiples of `unit_s`, and their scores, best first. Of spans that become equal the best is kept."""
    rounded: dict[tuple[float, float], float] = {}
    for (start_s, end_s), score in zip(spans_s.tolist(), scores.tolist(), strict=True):
        rounded.setdefault(round_span(start_s, end_s, duration_s=duration_s, unit_s=unit_s), score)
    return spans_s.new_tensor(list(rounded)), scores.new_tensor(list(rounded.values()))


def round_span(start_s: float, end_s: float, *, duration_s: float, unit_s: float) -> tuple[float, float]:
    """A span rounded to multiples of `unit_s`, inside the video and with start before end.

    Published models round before scoring: to 2 s on QVHighlights and TACoS, to 1 s on Charades-STA.
    """
    start = round(start_s / unit_s)
    end = round(end_s / unit_s)
    if start >= end or start * unit_s >= duration_s:  # the unit that contains the middle
        start = min(math.floor((start_s + end_s) / 2 / unit_s), math.ceil(duration_s / unit_s) - 1)
        end = max(end, start + 1)
    # Nine decimals: 3 * 0.1 is written 0.3.
    return round(start * unit_s, 9), min(round(end * unit_s, 9), duration_s)


def rated_saliency(saliency: Sequence[float], query: Query, *, fps: float) -> tuple[float, ...]:
    """The saliency of clips at `fps` -> one score for each window that annotators rate, as metrics expect it.

    The rated windows are `query.rated_s`, or every two seconds of the annotated duration. The score of a window is the mean
    over the clips with their centre in it, or that of the nearest clip if there is none.
    """
    values = np.asarray(saliency, dtype=np.float64)
    centres_s = (np.arange(len(saliency)) + 0.5) / fps
    rated_s = np.array(query.rated_s or _windows_of_two_seconds(query.duration_s))
    clip_bounds = np.searchsorted(centres_s, rated_s)
    nearest_clips = np.clip(np.ceil(rated_s.mean(axis=1) * fps - 1), 0, len(values) - 1).astype(int)
    return tuple(
        float(values[first:end].mean() if end > first else values[nearest])
        for (first, end), nearest in zip(clip_bounds, nearest_clips, strict=True)
    )


def _windows_of_two_seconds(duration_s: float) -> list[tuple[float, float]]:
    clips = Grid(1 / RATED_CLIP_S, duration_s).clips
    return [(i * RATED_CLIP_S, (i + 1) * RATED_CLIP_S) for i in range(clips)]

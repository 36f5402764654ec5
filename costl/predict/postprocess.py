"""Outputs of the heads -> predictions in seconds: inside the video, sorted, finite, duplicates pressed down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from costl.data.annotations import Prediction, Query, Window
from costl.data.batch import RATED_CLIP_S
from costl.model.spans import soft_nms
from costl.pipeline.grid import Grid

CANDIDATES = 60  # positions that compete in soft-NMS, of a video that is seen at once
SHORTEST = 0.25  # of a clip


def to_predictions(
    queries: Sequence[Query],
    *,
    scores: Float[Tensor, "b n"],
    spans: Float[Tensor, "b n 2"],
    positions: Bool[Tensor, "b n"],
    saliency: Float[Tensor, "b t"],
    clips: Sequence[int],
    clip_s: float,
    moments: int,
    nms_sigma: float,
    min_score: float,
    candidates: int = CANDIDATES,
) -> list[Prediction]:
    """One prediction a query: at most `moments` windows (start_s, end_s, score), best first, and `clips[b]` saliencies.

    `scores` in [0, 1]; `spans` in clips of `clip_s` seconds; the `candidates` best compete. Windows lie inside
    [0, duration] and start before they end; the best is kept even below `min_score`, so that every query has an answer.
    """
    predictions = []
    for i, query in enumerate(queries):
        best = scores[i].masked_fill(~positions[i], -1).topk(min(candidates, int(positions[i].sum()))).indices
        inside = _inside(spans[i, best].double() * clip_s, query.duration_s, SHORTEST * clip_s)
        kept = soft_nms(inside, scores[i, best].double(), sigma=nms_sigma, keep=moments)
        kept = kept[(kept[:, 2] >= min_score) | (torch.arange(len(kept)) == 0)]
        windows = tuple((float(a), float(b), float(s)) for a, b, s in kept)
        predictions.append(
            Prediction(query.qid, query.query, query.vid, windows, tuple(saliency[i, : clips[i]].tolist()))
        )
    return predictions


def _inside(spans_s: Float[Tensor, "m 2"], duration_s: float, shortest_s: float) -> Float[Tensor, "m 2"]:
    """Cut to the video; what is left of less than `shortest_s` grows to it around its middle."""
    shortest_s = min(shortest_s, duration_s)
    middle = spans_s.clamp(0, duration_s).mean(-1).clamp(shortest_s / 2, duration_s - shortest_s / 2)
    start = torch.minimum(spans_s[:, 0].clamp(0, duration_s), middle - shortest_s / 2)
    end = torch.maximum(spans_s[:, 1].clamp(0, duration_s), middle + shortest_s / 2)
    return torch.stack([start.clamp(min=0), end.clamp(max=duration_s)], -1)


def rounded(prediction: Prediction, duration_s: float, unit_s: float) -> Prediction:
    """Times to the nearest multiple of `unit_s`, inside the video and start before end; 0 leaves them as they are.

    Published models do it before scoring: to 2 s on QVHighlights and TACoS, to 1 s on Charades-STA.
    """
    if unit_s == 0:
        return prediction
    windows = tuple((*_on_grid(start, end, duration_s, unit_s), score) for start, end, score in prediction.windows)
    return replace(prediction, windows=windows)


def _on_grid(start: float, end: float, duration_s: float, unit_s: float) -> Window:
    a, b = round(start / unit_s), round(end / unit_s)
    if a >= b or a * unit_s >= duration_s:
        a = min(math.floor((start + end) / 2 / unit_s), math.ceil(duration_s / unit_s) - 1)
        b = max(b, a + 1)
    # Nine decimals: 3 * 0.1 is written 0.3.
    return round(a * unit_s, 9), min(round(b * unit_s, 9), duration_s)


def rated_saliency(saliency: Sequence[float], query: Query, *, fps: float) -> tuple[float, ...]:
    """Scores of clips at `fps` -> one score for each clip that annotations rate: `query.rated_s`, or else every two
    seconds of the annotated duration.

    Each is the mean over the clips whose centre falls into it, or the nearest clip where there is none.
    """
    values, centres = np.asarray(saliency, dtype=np.float64), (np.arange(len(saliency)) + 0.5) / fps
    rated = np.array(query.rated_s or _two_seconds_each(query.duration_s))
    bounds = np.searchsorted(centres, rated)
    nearest = np.clip(np.ceil(rated.mean(axis=1) * fps - 1), 0, len(values) - 1).astype(int)
    return tuple(
        float(values[a:b].mean() if b > a else values[near]) for (a, b), near in zip(bounds, nearest, strict=True)
    )


def _two_seconds_each(duration_s: float) -> list[tuple[float, float]]:
    clips = Grid(1 / RATED_CLIP_S, duration_s).clips
    return [(i * RATED_CLIP_S, (i + 1) * RATED_CLIP_S) for i in range(clips)]

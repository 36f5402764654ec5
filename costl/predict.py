"""Outputs of the heads -> predictions in seconds: inside the video, sorted, finite, duplicates pressed down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from costl.annotations import Prediction, Query
from costl.spans import soft_nms

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

"""Interval arithmetic on tensors: overlap, distance-IoU, clipping, suppression. Spans are [start, end) in any one unit."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def intersection(a: Float[Tensor, "*#n 2"], b: Float[Tensor, "*#n 2"]) -> Float[Tensor, "*#n"]:
    """Length of the overlap of each pair (shapes broadcast); zero where the spans do not overlap."""
    return (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)


def iou(a: Float[Tensor, "*#n 2"], b: Float[Tensor, "*#n 2"]) -> Float[Tensor, "*#n"]:
    """Intersection over union of each pair (shapes broadcast); 0 where both spans are empty."""
    overlap = intersection(a, b)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - overlap
    return overlap / union.clamp(min=1e-6)


def distance_iou(a: Float[Tensor, "*#n 2"], b: Float[Tensor, "*#n 2"]) -> Float[Tensor, "*#n"]:
    """IoU minus the squared distance of the centres over the squared length of the hull, in [-1, 1] (Zheng et al. 2020)."""
    centre_distance = (a.sum(-1) - b.sum(-1)) / 2
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return iou(a, b) - (centre_distance / hull.clamp(min=1e-6)).square()


def soft_nms(
    spans: Float[Tensor, "m 2"], scores: Float[Tensor, "m"], *, sigma: float, keep: int
) -> Float[Tensor, "k 3"]:
    """Gaussian soft-NMS (Bodla et al. 2017): rows (start, end, score), best first, at most `keep`.

    Each round selects the best span and multiplies the scores of all others by exp(-iou^2 / sigma).
    """
    is_selected = torch.zeros_like(scores, dtype=torch.bool)
    selected = []
    for _ in range(min(keep, len(scores))):
        best = scores.argmax()
        selected.append(torch.cat([spans[best], scores[best, None]]))
        is_selected[best] = True
        scores = (scores * torch.exp(-iou(spans, spans[best]).square() / sigma)).masked_fill(is_selected, -1.0)
    return torch.stack(selected) if selected else spans.new_zeros(0, 3)

"""The objective of training: the weighted sum of all losses.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from costl.config import Loss
from costl.data.batch import Batch
from costl.model import losses
from costl.model.contrast import NEGATIVE_CLIP_STEP, Similarities
from costl.model.costl import Outputs
from costl.model.matcher import assign_moments


def total_loss(outputs: Outputs, batch: Batch, weights: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each loss by its name (unweighted). A loss of weight 0 is not computed.

    A batch without any moment has no loss about moments. If no other loss has a weight, the sum and its gradient are zero.
    """
    # Negative pairs come last. Slices, since a mask such as `is_positive_pair` would make the host wait for the device.
    positive = slice(None, batch.positive_pairs)
    negative = slice(batch.positive_pairs, None)
    position_mask = outputs.position_mask[positive]
    frame_mask = batch.frame_mask[batch.video]
    saliency = outputs.saliency[positive]
    parts: dict[str, Tensor] = {}
    if batch.moments.shape[1]:
        spans = outputs.spans[positive]
        targets = assign_moments(
            batch.moments[positive], batch.moment_mask[positive], outputs.centres, outputs.strides, position_mask
        )
        if weights.focal:
            parts["focal"] = losses.focal_loss(
                outputs.foreground[positive], spans, targets, position_mask, quality=weights.quality
            )
        if weights.iou:
            parts["iou"] = losses.overlap_loss(spans, targets)
    if weights.saliency:
        parts["saliency"] = losses.saliency_loss(saliency, batch.ratings[positive], frame_mask[positive])
    if weights.wrong_query:
        parts["wrong_query"] = losses.wrong_query_loss(
            outputs.saliency[negative],
            outputs.foreground[negative],
            frame_mask[negative],
            outputs.position_mask[negative],
        )
    if weights.contrast:
        assert outputs.similarities is not None, "the contrastive loss needs a forward with contrast=True"
        parts["contrast"] = _contrast_loss(outputs.similarities, batch)
    if not parts:
        return outputs.saliency.float().sum() * 0, parts
    total = sum((getattr(weights, name) * value for name, value in parts.items()), saliency.new_zeros(()))
    return total, parts


def _contrast_loss(similarities: Similarities, batch: Batch) -> Tensor:
    """The mean of the contrastive loss over the similarity heads, for the positive pairs."""
    positive = slice(None, batch.positive_pairs)
    video = batch.video[positive]
    relevant = batch.relevant[positive]
    negative_mask = batch.frame_mask[:, ::NEGATIVE_CLIP_STEP]
    heads = zip(similarities.positives[:, positive], similarities.negatives[:, positive], strict=True)
    head_losses = [
        losses.contrast_loss(positives, negatives, video, relevant, negative_mask) for positives, negatives in heads
    ]
    return torch.stack(head_losses).mean()

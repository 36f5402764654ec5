"""The sum that training minimises: every loss by name, weighted."""

from __future__ import annotations

import torch
from torch import Tensor

from costl.config import Loss
from costl.data.batch import Batch
from costl.model import losses
from costl.model.contrast import RIVAL_STEP
from costl.model.costl import Outputs


def total_loss(outputs: Outputs, batch: Batch, weights: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    """-> the weighted sum and each loss by its own name (unweighted); a loss of weight 0 is not computed."""
    # The wrong pairs come last: slices, where the mask `batch.right` would make the host wait for the device.
    right, wrong = slice(None, batch.pairs), slice(batch.pairs, None)
    positions, mask = outputs.positions[right], batch.frame_mask[batch.video]
    saliency = outputs.saliency[right]
    parts: dict[str, Tensor] = {}
    if batch.moments.shape[1]:
        spans = outputs.spans[right]
        targets = losses.assign_moments(
            batch.moments[right], batch.moment_mask[right], outputs.centres, outputs.strides, positions
        )
        if weights.focal:
            parts["focal"] = losses.focal_loss(
                outputs.foreground[right], spans, targets, positions, quality=weights.quality
            )
        if weights.iou:
            parts["iou"] = losses.overlap_loss(spans, targets)
    if weights.saliency:
        parts["saliency"] = losses.saliency_loss(saliency, batch.ratings[right], mask[right])
    if weights.wrong_query:
        parts["wrong_query"] = losses.wrong_query_loss(
            outputs.saliency[wrong], outputs.foreground[wrong], mask[wrong], outputs.positions[wrong]
        )
    if weights.contrast:
        match, rival_mask = outputs.match, batch.frame_mask[:, ::RIVAL_STEP]
        assert match is not None, "the contrast needs a forward with matching"
        ways = [
            losses.contrast_loss(own, rivals, batch.video[right], batch.relevant[right], rival_mask)
            for own, rivals in zip(match.own[:, right], match.rivals[:, right], strict=True)
        ]
        parts["contrast"] = torch.stack(ways).mean()
    total = sum((getattr(weights, name) * value for name, value in parts.items()), saliency.new_zeros(()))
    return total, parts

"""The objective of training: the weighted sum of all losses, of the model's outputs for one batch.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from costl.config import Loss
from costl.data.batch import Batch
from costl.model import losses
from costl.model.build import Model
from costl.model.contrast import NEGATIVE_CLIP_STEP, Similarities
from costl.model.costl import Outputs
from costl.model.matcher import assign_moments
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.precision import autocast
from costl.training.shared_batch import batch_texts, gather_outputs


class Objective(nn.Module):
    """The loss of a batch as one module: the model, then the losses.

    Several processes compute the model for their share of the batch each, and every process computes the loss of the whole
    batch from the outputs of all.
    """

    def __init__(self, model: Model, weights: Loss, precision: torch.dtype, ranks: Ranks = SINGLE_PROCESS):
        super().__init__()
        self.model = model
        self.weights = weights
        self.precision = precision
        self.ranks = ranks
        # DistributedDataParallel prints a warning if every weight of its module is used in the first batch.
        self.unused = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each loss by its name (unweighted), in float32 whatever the precision of the model is."""
        contrast = batch_texts(batch, self.ranks) if self.weights.contrast else None
        with autocast(batch.video.device, self.precision):
            outputs = self.model(batch.inputs, contrast=contrast)
        return total_loss(gather_outputs(outputs, batch, self.ranks), batch, self.weights)


def total_loss(outputs: Outputs, batch: Batch, weights: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each loss by its name (unweighted). A loss of weight 0 is not computed.

    A batch without any moment has no loss about moments. If no other loss has a weight, the sum and its gradient are zero.
    """
    # Negative pairs come last. Slices, since indexing with a mask would make the host wait for the device.
    positive = slice(None, len(batch.queries))
    negative = slice(len(batch.queries), None)
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
            parts["focal"] = losses.focal_loss(outputs.foreground[positive], spans, targets, position_mask)
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
        assert outputs.similarities is not None, "the contrastive loss needs a forward with contrast"
        parts["contrast"] = _contrast_loss(outputs.similarities, batch)
    if not parts:
        return outputs.saliency.float().sum() * 0, parts
    total = sum((getattr(weights, name) * value for name, value in parts.items()), saliency.new_zeros(()))
    return total, parts


def _contrast_loss(similarities: Similarities, batch: Batch) -> Tensor:
    """The mean of the contrastive loss over the similarity heads, for the positive pairs."""
    positive = slice(None, len(batch.queries))
    video = batch.video[positive]
    relevant = batch.relevant[positive]
    negative_mask = batch.frame_mask[:, ::NEGATIVE_CLIP_STEP]
    heads = zip(similarities.positives[:, positive], similarities.negatives[:, positive], strict=True)
    head_losses = [
        losses.contrast_loss(positives, negatives, video, relevant, negative_mask) for positives, negatives in heads
    ]
    return torch.stack(head_losses).mean()

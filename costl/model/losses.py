"""Targets and losses: each loss is a function that returns one number, cannot overflow and ignores padding.

Values that do not count are set to zero before anything is computed from them, not after: a product with zero keeps
NaN, and so does the gradient of `torch.where`. Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from costl.model import spans
from costl.model.matcher import MomentTargets

MASKED_LOGIT = -1e30  # has no weight in a float32 softmax; finite, so that no gradient becomes inf - inf


def focal_loss(
    logits: Float[Tensor, "b n"],
    predicted: Float[Tensor, "b n 2"],
    targets: MomentTargets,
    position_mask: Bool[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """Focal classification of the real positions, divided by the number of positives.

    The target of a positive is the IoU of its (detached) span with its moment: the score is trained to predict the IoU
    (quality focal loss, Li et al. 2020).
    """
    overlap = spans.iou(zero_unmatched(predicted.detach(), targets), targets.spans)
    target = targets.positive * overlap
    logits = logits.float().masked_fill(~position_mask, 0.0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    error = target - logits.sigmoid()
    return (cross_entropy * error.square() * position_mask).sum() / targets.positive.sum().clamp(min=1)


def overlap_loss(predicted: Float[Tensor, "b n 2"], targets: MomentTargets) -> Float[Tensor, ""]:
    """1 - distance-IoU, the mean over positives."""
    return _masked_mean(1 - spans.distance_iou(zero_unmatched(predicted, targets), targets.spans), targets.positive)


def saliency_loss(
    scores: Float[Tensor, "b t"], ratings: Float[Tensor, "b t"], frame_mask: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Rank-contrastive loss over graded ratings: for each grade, clips at or above it against all clips below.

    `ratings` are in [0, 1]. A query without a clip on each side of a grade does not count at this grade. After the
    rank-contrastive loss of Hoffmann et al. 2022, as used for highlights by Moon et al. 2023.
    """
    scores = scores.float().masked_fill(~frame_mask, MASKED_LOGIT)
    losses = scores.new_zeros(())
    count = scores.new_zeros(())
    for grade in (0.01, 0.3, 0.55, 0.8):
        above = (ratings >= grade) & frame_mask
        below = (ratings < grade) & frame_mask
        usable = (above.any(1) & below.any(1)).float()
        below_logit = torch.logsumexp(scores.masked_fill(~below, MASKED_LOGIT), 1, keepdim=True)
        # -log of the clip's softmax among all clips below the grade
        clip_loss = F.softplus(below_logit - scores) * above
        losses = losses + (clip_loss.sum(1) / above.sum(1).clamp(min=1) * usable).sum()
        count = count + usable.sum()
    return losses / count.clamp(min=1)


def wrong_query_loss(
    saliency: Float[Tensor, "b t"],
    foreground: Float[Tensor, "b n"],
    frame_mask: Bool[Tensor, "b t"],
    position_mask: Bool[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """Lowers all scores of negative pairs: softplus of the saliency of each clip, focal loss of each position."""
    if not len(saliency):
        return saliency.sum() * 0
    clip_losses = F.softplus(saliency.float().masked_fill(~frame_mask, 0.0)) * frame_mask
    clip_loss = clip_losses.sum() / frame_mask.sum().clamp(min=1)
    logits = foreground.float().masked_fill(~position_mask, 0.0)
    return clip_loss + (F.softplus(logits) * logits.sigmoid() ** 2 * position_mask).sum() / len(logits)


def contrast_loss(
    positives: Float[Tensor, "b t"],
    negatives: Float[Tensor, "b v u"],
    video: Int[Tensor, "b"],
    relevant: Bool[Tensor, "b t"],
    negative_mask: Bool[Tensor, "v u"],
) -> Float[Tensor, ""]:
    """Each `relevant` frame of a query must be more similar to it than all frames of other videos of the batch (InfoNCE).

    A similarity is a soft maximum over the patches of a frame, so the gradient goes to the patches that tell the videos
    apart: the things that the sentence names (multiple-instance learning, after Miech et al. 2020). Frames of the same
    video never count as negatives: the thing may be visible there, in another action.
    """
    is_other_video = torch.arange(negatives.shape[1], device=video.device) != video[:, None]
    is_negative = (is_other_video[..., None] & negative_mask).flatten(1)
    negative_logits = negatives.float().flatten(1).masked_fill(~is_negative, MASKED_LOGIT)
    negative_logit = negative_logits.logsumexp(1, keepdim=True)
    positive_logits = positives.float().masked_fill(~relevant, 0.0)
    loss = (F.softplus(negative_logit - positive_logits) * relevant).sum(1) / relevant.sum(1).clamp(min=1)
    return _masked_mean(loss, relevant.any(1) & is_negative.any(1))


def zero_unmatched(predicted: Float[Tensor, "b n 2"], targets: MomentTargets) -> Float[Tensor, "b n 2"]:
    """The spans in float32, zero where no moment is assigned to the position."""
    return predicted.float().masked_fill(~targets.positive[..., None], 0.0)


def _masked_mean(values: Tensor, mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)

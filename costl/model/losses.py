"""Targets and losses: each loss is a function that returns its own number, cannot overflow, and never touches padding.

What does not count is put to zero before anything is computed from it, not after: a product with zero keeps NaN, and so
does the gradient of `torch.where`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from costl.model import spans

CENTRE_RADIUS = 1.5  # positives lie within this many strides of a moment's centre
MASKED_LOGIT = -1e30  # weighs nothing next to any other, in float32; finite, so that no gradient becomes inf - inf


@dataclass(frozen=True)
class MomentTargets:
    """For each of `n` positions: is it answerable for a moment (`positive`), and for which span in clips."""

    positive: Bool[Tensor, "b n"]
    spans: Float[Tensor, "b n 2"]


def assign_moments(
    moments: Float[Tensor, "b m 2"],
    moment_mask: Bool[Tensor, "b m"],
    centres: Float[Tensor, "n"],
    strides: Float[Tensor, "n"],
    positions: Bool[Tensor, "b n"],
) -> MomentTargets:
    """Centre sampling with a range of lengths for each scale, the shortest moment wins (Tian et al. 2019, in one dimension).

    A position of stride s answers for a moment if it lies inside, within 1.5 s of its centre, and the farther end is
    between s and 2 s away (below 2 at the finest scale, without limit at the coarsest). A moment that no position would
    answer for is given to the nearest position of the finest scale.
    """
    start, end = moments[:, None, :, 0], moments[:, None, :, 1]
    at, stride = centres[None, :, None], strides[None, :, None]
    farther = torch.maximum(at - start, end - at)
    low, high = (
        torch.where(stride == strides.min(), 0.0, stride),
        torch.where(stride == strides.max(), torch.inf, 2 * stride),
    )
    fits = (at >= start) & (at <= end) & ((at - (start + end) / 2).abs() <= CENTRE_RADIUS * stride)
    fits = fits & (farther >= low) & (farther < high) & moment_mask[:, None]
    nearest = ((at - (start + end) / 2).abs() + (stride != strides.min()) * 1e6).argmin(1)
    alone = ~fits.any(1) & moment_mask
    is_nearest = torch.arange(len(centres), device=centres.device)[None, :, None] == nearest[:, None]
    fits = fits | (is_nearest & alone[:, None])
    fits = fits & positions[..., None]
    length = torch.where(fits, end - start, torch.inf)
    chosen = moments.gather(1, length.argmin(-1, keepdim=True).expand(-1, -1, 2))
    return MomentTargets(positive=fits.any(-1), spans=chosen)


def focal_loss(
    logits: Float[Tensor, "b n"],
    predicted: Float[Tensor, "b n 2"],
    targets: MomentTargets,
    positions: Bool[Tensor, "b n"],
    *,
    quality: float = 1.0,
) -> Float[Tensor, ""]:
    """Focal classification of real positions, over the number of positives: what is asked for at a positive is the overlap of
    its (detached) span with its moment, so that a score tells how good a moment is (quality focal loss, Li et al. 2020).

    With `quality` 0 it is a plain yes (focal loss, Lin et al. 2017), in between their blend.
    """
    overlap = spans.iou(_counting(predicted.detach(), targets), targets.spans)
    truth = targets.positive * (1 - quality + quality * overlap)
    logits = logits.float().masked_fill(~positions, 0.0)
    plain = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    miss = truth - logits.sigmoid()
    return (plain * miss.square() * positions).sum() / targets.positive.sum().clamp(min=1)


def overlap_loss(predicted: Float[Tensor, "b n 2"], targets: MomentTargets) -> Float[Tensor, ""]:
    """1 - distance-IoU, mean over positives."""
    return _mean_over(1 - spans.distance_iou(_counting(predicted, targets), targets.spans), targets.positive)


def saliency_loss(
    scores: Float[Tensor, "b t"], ratings: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Rank-contrastive over graded ratings: for each grade, clips at or above it against all that are below.

    `ratings` in [0, 1]; a query without a clip on either side of a grade takes no part at that grade. After the
    rank-contrastive loss of Hoffmann et al. 2022, as used for highlights by Moon et al. 2023.
    """
    scores = scores.float().masked_fill(~mask, MASKED_LOGIT)
    losses, counted = scores.new_zeros(()), scores.new_zeros(())
    for grade in (0.01, 0.3, 0.55, 0.8):
        above, below = (ratings >= grade) & mask, (ratings < grade) & mask
        usable = (above.any(1) & below.any(1)).float()
        rest = torch.logsumexp(scores.masked_fill(~below, MASKED_LOGIT), 1, keepdim=True)
        each = F.softplus(rest - scores) * above  # -log of this clip's share against everything below the grade
        losses = losses + (each.sum(1) / above.sum(1).clamp(min=1) * usable).sum()
        counted = counted + usable.sum()
    return losses / counted.clamp(min=1)


def wrong_query_loss(
    saliency: Float[Tensor, "b t"],
    foreground: Float[Tensor, "b n"],
    mask: Bool[Tensor, "b t"],
    positions: Bool[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """A sentence about another video must find nothing: softplus of every clip's saliency, focal of every position."""
    if not len(saliency):
        return saliency.sum() * 0
    clips = (F.softplus(saliency.float().masked_fill(~mask, 0.0)) * mask).sum() / mask.sum().clamp(min=1)
    found = foreground.float().masked_fill(~positions, 0.0)
    return clips + (F.softplus(found) * found.sigmoid() ** 2 * positions).sum() / len(found)


def contrast_loss(
    own: Float[Tensor, "b t"],
    rivals: Float[Tensor, "b v u"],
    video: Int[Tensor, "b"],
    relevant: Bool[Tensor, "b t"],
    rival_mask: Bool[Tensor, "v u"],
) -> Float[Tensor, ""]:
    """A sentence's `own` relevant frames must match it better than any frame of another video in the batch (InfoNCE).

    The match is a soft maximum over a frame's regions, so the gradient goes to the regions that tell the videos apart:
    the things the sentence names (multiple-instance learning, after Miech et al. 2020). Frames of the same video are
    never `rivals`: what the sentence names may well be there, doing something else.
    """
    another = torch.arange(rivals.shape[1], device=video.device) != video[:, None]
    counted = (another[..., None] & rival_mask).flatten(1)
    others = rivals.float().flatten(1).masked_fill(~counted, MASKED_LOGIT).logsumexp(1, keepdim=True)
    mine = own.float().masked_fill(~relevant, 0.0)
    loss = (F.softplus(others - mine) * relevant).sum(1) / relevant.sum(1).clamp(min=1)
    return _mean_over(loss, relevant.any(1) & counted.any(1))


def _counting(predicted: Float[Tensor, "b n 2"], targets: MomentTargets) -> Float[Tensor, "b n 2"]:
    return predicted.float().masked_fill(~targets.positive[..., None], 0.0)


def _mean_over(values: Tensor, counted: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)

"""Which positions of which scale are responsible for which moment of the ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CENTRE_RADIUS = 1.5  # positives lie within this many strides of a moment's centre


@dataclass(frozen=True)
class MomentTargets:
    """Targets of each position: is a moment assigned to it (`positive`), and the span of this moment in clips."""

    positive: Bool[Tensor, "b n"]
    spans: Float[Tensor, "b n 2"]


def assign_moments(
    moments: Float[Tensor, "b m 2"],
    moment_mask: Bool[Tensor, "b m"],
    centres: Float[Tensor, "n"],
    strides: Float[Tensor, "n"],
    position_mask: Bool[Tensor, "b n"],
) -> MomentTargets:
    """Centre sampling with a range of lengths for each scale, the shortest moment wins (Tian et al. 2019, in one dimension).

    A position of stride s matches a moment if it lies inside, within 1.5 s of the moment's centre, and the farther end
    is between s and 2 s away (below 2 at the finest scale, without limit at the coarsest). A moment without a match is
    assigned to the nearest position of the finest scale.
    """
    start = moments[:, None, :, 0]
    end = moments[:, None, :, 1]
    position = centres[None, :, None]
    stride = strides[None, :, None]
    farther = torch.maximum(position - start, end - position)
    low = torch.where(stride == strides.min(), 0.0, stride)
    high = torch.where(stride == strides.max(), torch.inf, 2 * stride)
    centre_distance = (position - (start + end) / 2).abs()
    matches = (position >= start) & (position <= end) & (centre_distance <= CENTRE_RADIUS * stride)
    matches = matches & (farther >= low) & (farther < high) & moment_mask[:, None]
    nearest = (centre_distance + (stride != strides.min()) * 1e6).argmin(1)
    unmatched = ~matches.any(1) & moment_mask
    is_nearest = torch.arange(len(centres), device=centres.device)[None, :, None] == nearest[:, None]
    matches = matches | (is_nearest & unmatched[:, None])
    matches = matches & position_mask[..., None]
    length = torch.where(matches, end - start, torch.inf)
    spans_of_shortest = moments.gather(1, length.argmin(-1, keepdim=True).expand(-1, -1, 2))
    return MomentTargets(positive=matches.any(-1), spans=spans_of_shortest)

"""The heads: foreground scores and distances to start and end at every scale, and saliency of every clip.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class MomentHead(nn.Module):
    """Foreground logits and distances, with weights shared by all scales and one learned factor for each scale."""

    def __init__(self, *, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.strides = strides
        self.score_branch = ConvBlock(width)
        self.span_branch = ConvBlock(width)
        self.foreground = nn.Linear(width, 1)
        self.distances = nn.Linear(width, 2)
        self.log_factor = nn.Parameter(torch.zeros(len(strides)))
        nn.init.constant_(self.foreground.bias, -math.log(9))  # a foreground share of 0.1, as focal loss needs it

    def forward(
        self, levels: list[Float[Tensor, "b _ d"]], masks: list[Bool[Tensor, "b _"]]
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n 2"]]:
        """Foreground logits, and distances (>= 0) to start and end in clips, one scale after another."""
        foreground = []
        distances = []
        for i, (x, mask) in enumerate(zip(levels, masks, strict=True)):
            score_features = self.score_branch(x, mask)
            span_features = self.span_branch(x, mask)
            foreground.append(self.foreground(score_features)[..., 0])
            # In float32, as autocast does it on a GPU: half precision cannot tell distant clips apart.
            distance = F.softplus(self.distances(span_features).float())
            distances.append(distance * self.strides[i] * self.log_factor[i].exp())
        return torch.cat(foreground, 1), torch.cat(distances, 1)


class ConvBlock(nn.Module):
    """Convolution over three positions, layer norm, GELU; padding counts as zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Features of the same length."""
        return F.gelu(self.norm(self.conv((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)))


class SaliencyHead(nn.Module):
    """Saliency of each clip for a sentence, from the clip, the mean over the video and the sentence."""

    def __init__(self, *, width: int):
        super().__init__()
        self.frame = nn.Linear(width, width)
        self.video = nn.Linear(width, width)
        self.sentence = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(
        self, frames: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], sentence: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b t"]:
        """One unbounded score for each clip."""
        mean = (frames * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        context = self.video(mean) + self.sentence(sentence)
        return self.out(F.gelu(self.frame(frames) + context[:, None]))[..., 0]


def anchors(
    clips: int, strides: tuple[int, ...], device: torch.device
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Centre and stride of every position of every scale, in clips, in the order of the outputs of `MomentHead`."""
    centres = []
    position_strides = []
    for stride in strides:
        count = math.ceil(clips / stride)
        centres.append((torch.arange(count, device=device) + 0.5) * stride)
        position_strides.append(torch.full((count,), float(stride), device=device))
    return torch.cat(centres), torch.cat(position_strides)

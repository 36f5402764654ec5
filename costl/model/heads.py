"""Frames at several scales -> foreground, distances to start and end; frames -> saliency."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class MomentHead(nn.Module):
    """Shared over the scales; distances are in clips, through a learned factor for each scale's stride."""

    def __init__(self, *, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.strides = strides
        self.trunk = nn.ModuleList(ConvBlock(width) for _ in range(2))
        self.foreground = nn.Linear(width, 1)
        self.distances = nn.Linear(width, 2)
        self.log_factor = nn.Parameter(torch.zeros(len(strides)))
        nn.init.constant_(
            self.foreground.bias, -math.log(9)
        )  # starts at a foreground share of 0.1, as focal loss wants

    def forward(
        self, levels: list[Float[Tensor, "b _ d"]], masks: list[Bool[Tensor, "b _"]]
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n 2"]]:
        """-> foreground logits and distances (>= 0) to start and end in clips, scales one after another."""
        foreground, distances = [], []
        for i, (x, mask) in enumerate(zip(levels, masks, strict=True)):
            what, where = (block(x, mask) for block in self.trunk)
            foreground.append(self.foreground(what)[..., 0])
            # In float32 as on a GPU, where autocast sees to it: half precision cannot tell distant clips apart.
            reach = F.softplus(self.distances(where).float())
            distances.append(reach * self.strides[i] * self.log_factor[i].exp())
        return torch.cat(foreground, 1), torch.cat(distances, 1)


class ConvBlock(nn.Module):
    """Norm after a convolution of three positions; padding counts as zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Same length out as in."""
        return F.gelu(self.norm(self.conv((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)))


class SaliencyHead(nn.Module):
    """How well each clip shows what the sentence says: the clip against the whole video (masked mean) and the sentence."""

    def __init__(self, *, width: int):
        super().__init__()
        self.frame = nn.Linear(width, width)
        self.video = nn.Linear(width, width)
        self.sentence = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(
        self, frames: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], sentence: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b t"]:
        """-> one score a clip, unbounded."""
        mean = (frames * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        against = self.video(mean) + self.sentence(sentence)
        return self.out(F.gelu(self.frame(frames) + against[:, None]))[..., 0]


def anchors(
    clips: int, strides: tuple[int, ...], device: torch.device
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Centre of every position of every scale and its stride, both in clips, in the order of the heads' outputs."""
    centres, widths = [], []
    for stride in strides:
        count = math.ceil(clips / stride)
        centres.append((torch.arange(count, device=device) + 0.5) * stride)
        widths.append(torch.full((count,), float(stride), device=device))
    return torch.cat(centres), torch.cat(widths)

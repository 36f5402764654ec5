"""The temporal module: frames attend to words and to each other, then a pyramid shows them at several scales.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class TemporalLayer(nn.Module):
    """Pre-norm layer: cross-attention to words (with null tokens), convolution, self-attention, feed-forward."""

    def __init__(self, *, width: int, heads: int, kernel: int, null_tokens: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.null_tokens = nn.Parameter(torch.randn(null_tokens, width) * 0.02)
        self.cross_attention = Attention(width=width, heads=heads)
        self.local = TextScaledConv(width=width, kernel=kernel)
        self.self_attention = Attention(width=width, heads=heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        frames: Float[Tensor, "b t d"],
        frame_mask: Bool[Tensor, "b t"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        text: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b t d"]:
        """The refined frames. Padding changes no real frame."""
        null_tokens = self.null_tokens.expand(len(words), -1, -1)
        word_mask = torch.cat([word_mask.new_ones(null_tokens.shape[:2]), word_mask], 1)
        words = torch.cat([null_tokens, words], 1)
        frames = frames + self.dropout(self.cross_attention(self.norms[0](frames), words, word_mask))
        frames = frames + self.dropout(self.local(self.norms[1](frames), frame_mask, text))
        normed = self.norms[2](frames)
        frames = frames + self.dropout(self.self_attention(normed, normed, frame_mask))
        return frames + self.dropout(self.feed_forward(self.norms[3](frames)))


class Attention(nn.Module):
    """Multi-head attention; `source_mask` is True where the source is real."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b i d"], source: Float[Tensor, "b j d"], source_mask: Bool[Tensor, "b j"]
    ) -> Float[Tensor, "b i d"]:
        """What each row of `x` gathers from the real rows of `source`."""
        key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.key_value(source).chunk(2, -1))
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=source_mask[:, None, None])
        return self.out(attended.transpose(1, 2).flatten(2))


class TextScaledConv(nn.Module):
    """Depthwise convolution over time, each channel scaled by the text, then a linear layer over the channels.

    The convolution sees changes between neighbouring frames, such as a move up or down. The product compares them with
    the text. With a sum in its place, the layer would have to memorise which pairs agree.
    """

    def __init__(self, *, width: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.text_scale = nn.Linear(width, width)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(width, width))

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], text: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b t d"]:
        """The features of each position; padding counts as zero, like the positions outside an unpadded video."""
        changes = self.depthwise((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return self.mix(changes * (1 + self.text_scale(text))[:, None])


class PositionReader(nn.Module):
    """What the positions of the attention say about a sentence: where things are, how they move, how two of them are placed.

    The text chooses what is compared: two heads ("left of"), or a head with itself in the neighbouring clips ("goes left").
    The second layer combines comparisons ("passes left of"). Positions that are only added to the contents of a frame do not
    suffice: later layers can hardly tell them apart again.
    """

    def __init__(self, *, position_width: int, width: int, kernel: int):
        super().__init__()
        self.project = nn.Linear(position_width, width)
        nn.init.normal_(self.project.weight, std=math.sqrt(2 / position_width))  # as in the gates of the spatial encoder
        self.compare = TextScaledConv(width=width, kernel=kernel)
        self.norm = nn.LayerNorm(width)
        self.combine = TextScaledConv(width=width, kernel=kernel)

    def forward(
        self, head_positions: Float[Tensor, "b t _"], mask: Bool[Tensor, "b t"], text: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b t d"]:
        """What is added to each frame."""
        compared = self.compare(self.project(head_positions), mask, text)
        return compared + self.combine(self.norm(compared), mask, text)


class TextPool(nn.Module):
    """Pools the words of a query into one vector with a learned softmax."""

    def __init__(self, *, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Float[Tensor, "b l d"], word_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """One vector for each query. A query has at least one real word."""
        weights = self.score(words)[..., 0].masked_fill(~word_mask, -torch.inf).softmax(-1)
        return self.norm(torch.einsum("bl,bld->bd", weights, words))


class Pyramid(nn.Module):
    """Scales of stride 1, 2, 4, ... by strided convolutions, then a text-scaled convolution at each scale."""

    def __init__(self, *, width: int, strides: tuple[int, ...], kernel: int):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv1d(width, width, 2, stride=2) for _ in strides[1:])
        self.local = nn.ModuleList(TextScaledConv(width=width, kernel=kernel) for _ in strides)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in strides)

    def forward(
        self, frames: Float[Tensor, "b t d"], frame_mask: Bool[Tensor, "b t"], text: Float[Tensor, "b d"]
    ) -> tuple[list[Float[Tensor, "b _ d"]], list[Bool[Tensor, "b _"]]]:
        """One tensor [b ceil(t/stride) d] for each scale, and its mask, finest first.

        A coarse position is real if any clip under it is.
        """
        levels = [frames]
        masks = [frame_mask]
        for conv in self.down:
            levels.append(_halve(conv, levels[-1] * masks[-1][..., None]))
            masks.append(halve_mask(masks[-1]))
        levels = [x + local(x, mask, text) for x, mask, local in zip(levels, masks, self.local, strict=True)]
        return [norm(x) for x, norm in zip(levels, self.norms, strict=True)], masks


def _halve(conv: nn.Module, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b _ d"]:
    return F.gelu(conv(F.pad(x, (0, 0, 0, x.shape[1] % 2)).transpose(1, 2)).transpose(1, 2))


def halve_mask(mask: Bool[Tensor, "b t"]) -> Bool[Tensor, "b _"]:
    """The mask of half as many positions: one of them is real if any of its two is."""
    return F.pad(mask, (0, mask.shape[1] % 2)).unflatten(1, (-1, 2)).any(-1)


def sine_positions(clips: int, width: int, device: torch.device) -> Float[Tensor, "t d"]:
    """Sinusoidal position encoding of clips 0 .. clips-1 (Vaswani et al. 2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angle = torch.arange(clips, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

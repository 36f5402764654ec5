"""Looks across time: frames exchange with words and with each other, then at several scales at once."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class TemporalLayer(nn.Module):
    """Pre-norm: words -> frames (with null tokens), neighbours -> frames, all frames -> frames, each frame by itself."""

    def __init__(self, *, width: int, heads: int, kernel: int, null_tokens: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.null = nn.Parameter(torch.randn(null_tokens, width) * 0.02)
        self.from_words = Attention(width=width, heads=heads)
        self.local = LocalView(width=width, kernel=kernel)
        self.from_frames = Attention(width=width, heads=heads)
        self.alone = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        frames: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "b t"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        text: Float[Tensor, "b d"],
    ) -> Float[Tensor, "b t d"]:
        """-> the frames, refined; padded frames are never looked at."""
        null = self.null.expand(len(words), -1, -1)
        word_mask = torch.cat([word_mask.new_ones(null.shape[:2]), word_mask], 1)
        frames = frames + self.dropout(self.from_words(self.norms[0](frames), torch.cat([null, words], 1), word_mask))
        frames = frames + self.dropout(self.local(self.norms[1](frames), mask, text))
        normed = self.norms[2](frames)
        frames = frames + self.dropout(self.from_frames(normed, normed, mask))
        return frames + self.dropout(self.alone(self.norms[3](frames)))


class Attention(nn.Module):
    """Multi-head attention; `mask` says which of the attended are real."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b q d"], source: Float[Tensor, "b s d"], mask: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b q d"]:
        """Each of `x` gathers from the real ones of `source`."""
        key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.key_value(source).chunk(2, -1))
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return self.out(found.transpose(1, 2).flatten(2))


class LocalView(nn.Module):
    """Depthwise convolution over time, each channel weighed by the text, then a mix over channels.

    The convolution sees what changes between neighbours (up or down?), the product asks whether that is what the
    sentence says: a sum of the two would have to learn the agreement of every pair by heart.
    """

    def __init__(self, *, width: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.ask = nn.Linear(width, width)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(width, width))

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], text: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b t d"]:
        """Padding counts as zero, exactly as beyond the ends of an unpadded video."""
        seen = self.depthwise((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return self.mix(seen * (1 + self.ask(text))[:, None])


class TextPool(nn.Module):
    """Words -> one vector of the whole text, by a learned softmax over the real ones."""

    def __init__(self, *, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """A sentence has at least one word."""
        share = self.score(words)[..., 0].masked_fill(~mask, -torch.inf).softmax(-1)
        return self.norm(torch.einsum("bl,bld->bd", share, words))


class Pyramid(nn.Module):
    """Scales of stride 1, 2, 4, ...: strided convolutions up, a local view at each, and with `top_down` a path back.

    stride 1  o o o o o o o o   <-- top-down: fine scales are told their context, which the layers before have shown them
    stride 2   o   o   o   o    <--
    stride 4     o       o
    """

    def __init__(self, *, width: int, strides: tuple[int, ...], kernel: int, top_down: bool):
        super().__init__()
        self.strides = strides
        self.factors = [b // a for a, b in pairwise(strides)]
        self.down = nn.ModuleList(nn.Conv1d(width, width, f, stride=f) for f in self.factors)
        self.local = nn.ModuleList(LocalView(width=width, kernel=kernel) for _ in strides)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in self.factors) if top_down else None
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in strides)

    def forward(
        self, frames: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], text: Float[Tensor, "b d"]
    ) -> tuple[list[Float[Tensor, "b _ d"]], list[Bool[Tensor, "b _"]]]:
        """-> one tensor [b ceil(t/stride) d] per scale and its mask; a coarse position is real if any clip under it is."""
        levels, masks = [frames], [mask]
        for conv, factor in zip(self.down, self.factors, strict=True):
            levels.append(_strided(conv, factor, levels[-1] * masks[-1][..., None]))
            masks.append(_any_under(masks[-1], factor))
        levels = [x + local(x, m, text) for x, m, local in zip(levels, masks, self.local, strict=True)]
        if self.up is not None:
            for i in reversed(range(len(self.up))):
                spread = self.up[i](levels[i + 1]).repeat_interleave(self.factors[i], dim=1)
                levels[i] = levels[i] + spread[:, : levels[i].shape[1]]
        return [norm(x) for x, norm in zip(levels, self.norms, strict=True)], masks


def _strided(conv: nn.Module, factor: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b u d"]:
    short = -x.shape[1] % factor
    return F.gelu(conv(F.pad(x, (0, 0, 0, short)).transpose(1, 2)).transpose(1, 2))


def _any_under(mask: Bool[Tensor, "b t"], factor: int) -> Bool[Tensor, "b u"]:
    return F.pad(mask, (0, -mask.shape[1] % factor)).unflatten(1, (-1, factor)).any(-1)


def time_waves(count: int, width: int, device: torch.device) -> Float[Tensor, "t d"]:
    """Sine positions of clips 0 .. count-1, [t d] (Vaswani et al. 2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angle = torch.arange(count, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

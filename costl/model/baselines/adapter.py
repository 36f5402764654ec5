"""The published idea closest to ours as a baseline: patches pooled by the query, refined again and again over layers.

After R2-Tuning (Liu et al. 2024): one block, its weights shared, walks from CLIP's last layer to earlier ones. At every
step the words pool the tokens of each frame, what they found joins the frame token through a gate, then words and frames
exchange. Written anew from the paper's description, under the heads and losses of this project.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.baselines.cls import Heads, Mlp, TextLayer
from costl.model.contrast import Match, match_frames, unit_length
from costl.model.costl import Outputs, WordTokens, keep_joint
from costl.model.temporal import TextPool
from costl.model.tokens import Asks, of_each

TEMPERATURE = 0.07  # of the match between frames and sentences, as published


class AdapterModel(nn.Module):
    """Query-modulated pooling and recurrent refinement, then a plain pyramid of strided convolutions."""

    def __init__(
        self,
        *,
        clip_width: int,
        word_width: int,
        joint: dict[str, Tensor],
        width: int,
        heads: int,
        strides: tuple[int, ...],
        rounds: int,
        dropout: float,
        input_dropout: float,
    ):
        super().__init__()
        keep_joint(self, joint)
        self.words = WordTokens(word_width=word_width, width=width, dropout=input_dropout)
        self.word_mlp = nn.Sequential(nn.ReLU(), Mlp(given=width, width=width, dropout=input_dropout))
        self.tokens = Mlp(given=clip_width, width=width, dropout=input_dropout)
        self.pool = QueryPool(width=width)
        self.layer = TextLayer(width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.open = nn.Parameter(torch.zeros(rounds))  # how much of what was pooled joins the frame token
        self.renew = nn.Parameter(torch.zeros(rounds))  # how much of a round takes the place of the one before
        self.text = TextPool(width=width)
        self.levels = ConvPyramid(width=width, strides=strides)
        self.heads = Heads(width=width, strides=strides)

    def forward(
        self,
        *,
        tokens: Float[Tensor, "v t n c"],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        words: Float[Tensor, "b l w"],
        word_mask: Bool[Tensor, "b l"],
        sentence: Float[Tensor, "b e"],
        most_queries: int | None = None,
        real_words: int | None = None,
        matching: bool = True,
    ) -> Outputs:
        """What the model's own forward takes and gives. A cache holds one layer of CLIP: every round reads that one."""
        return self.refine([tokens], frame_mask, video, words, word_mask, most_queries=most_queries, matching=matching)

    def refine(
        self,
        layers: Sequence[Float[Tensor, "v t n c"]],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        words: Float[Tensor, "b l w"],
        word_mask: Bool[Tensor, "b l"],
        *,
        most_queries: int | None = None,
        matching: bool = True,
    ) -> Outputs:
        """From the tokens of CLIP's last `layers`, the last one first; the rounds beyond them stay with the earliest."""
        asked = self.word_mlp(self.words(words))
        asks = Asks.of(video, len(frame_mask), most_queries)
        mask = frame_mask[video]
        text = self.text(asked, word_mask)
        read = [self.tokens(layer) for layer in layers]
        frames = mask.new_zeros(*mask.shape, asked.shape[-1], dtype=asked.dtype)
        for step in range(len(self.open)):
            tokens = read[min(step, len(read) - 1)]
            pooled = self.pool(tokens, asked, word_mask, asks)
            seen = of_each(tokens[:, :, 0], video) + self.open[step].tanh() * pooled
            share = self.renew[step].sigmoid() if step else 1.0
            frames = self.norm(self.layer(share * seen + (1 - share) * frames, mask, asked, word_mask))
        match = _match([tokens[:, :, 0] for tokens in read], text, video) if matching else None
        levels, masks = self.levels(frames, mask)
        return self.heads(levels, masks, text, match)


class QueryPool(nn.Module):
    """Each word gathers from all tokens of a frame; of the words the strongest in each channel is kept."""

    def __init__(self, *, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "v t n d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        asks: Asks,
    ) -> Float[Tensor, "b t d"]:
        """One vector a frame, as its sentence sees it."""
        asked = asks.by_video(self.query(words))
        score = torch.einsum("vqld,vtnd->vqtln", asked, self.key(tokens)) / tokens.shape[-1] ** 0.5
        found = torch.einsum("vqtln,vtnd->vqtld", score.softmax(-1), self.value(tokens))
        gathered = asks.by_query(found) + words[:, None]
        # Minus infinity, which every precision has; the sentence has at least one real word.
        return gathered.masked_fill(~word_mask[:, None, :, None], -torch.inf).amax(2)


class ConvPyramid(nn.Module):
    """Scales of stride 1, 2, 4, ...: each its own stack of strided convolutions over the frames, without a way back."""

    def __init__(self, *, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.scales = nn.ModuleList(Scale(width=width, halvings=i) for i in range(len(strides)))

    def forward(
        self, frames: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> tuple[list[Float[Tensor, "b _ d"]], list[Bool[Tensor, "b _"]]]:
        """-> one tensor for each scale and its mask; a coarse position is real if any clip under it is."""
        levels, masks = zip(*(scale(frames, mask) for scale in self.scales), strict=True)
        return list(levels), list(masks)


class Scale(nn.Module):
    """One scale of the pyramid: the frames, halved so many times."""

    def __init__(self, *, width: int, halvings: int):
        super().__init__()
        self.halve = nn.ModuleList(Halve(width) for _ in range(halvings))

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b u d"], Bool[Tensor, "b u"]]:
        """-> the positions of this scale, and which of them are real."""
        for halve in self.halve:
            x, mask = halve(x, mask)
        return F.relu(x), mask


class Halve(nn.Module):
    """Two positions to one; padding counts as zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b u d"], Bool[Tensor, "b u"]]:
        """-> half as many positions, and which of them are real."""
        odd = x.shape[1] % 2
        even = F.pad(x * mask[..., None], (0, 0, 0, odd)).transpose(1, 2)
        return F.relu(self.norm(self.conv(even).transpose(1, 2))), F.pad(mask, (0, odd)).unflatten(1, (-1, 2)).any(-1)


def _match(layers: Sequence[Float[Tensor, "v t d"]], text: Float[Tensor, "b d"], video: Int[Tensor, "b"]) -> Match:
    """Cosine similarity over a temperature, the mean over the layers."""
    mean = torch.stack([unit_length(frames) for frames in layers]).mean(0)
    return match_frames(unit_length(text) / TEMPERATURE, mean, video)

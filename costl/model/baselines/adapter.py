"""The last-layer patch adapter, a baseline: queries pool the patches, and one layer refines the frames again and again.

In each round the words pool the tokens of each frame, the result is added to the frame token through a gate, then words
and frames exchange. The design follows R2-Tuning (Liu et al. 2024), which reads an earlier layer of CLIP in each round. A
cache holds the last layer only, so every round reads that one, and published numbers of R2-Tuning are not comparable.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.baselines.cls import Mlp, TextLayer
from costl.model.contrast import BatchTexts, frame_similarities, unit_length
from costl.model.costl import Outputs, WordProjection, apply_heads
from costl.model.heads import MomentHead, SaliencyHead
from costl.model.inputs import ModelInputs
from costl.model.temporal import TextPool, halve_mask
from costl.model.tokens import QueryGroups, gather_per_query

ROUNDS = 4
TEMPERATURE = 0.07  # of the similarity between frames and sentences


class AdapterModel(nn.Module):
    """Query-modulated pooling and recurrent refinement, then a plain pyramid of strided convolutions."""

    has_attention_maps = False

    def __init__(
        self,
        *,
        encoder_width: int,
        word_width: int,
        width: int,
        heads: int,
        strides: tuple[int, ...],
        dropout: float,
        input_dropout: float,
    ):
        super().__init__()
        self.word_projection = WordProjection(word_width=word_width, width=width, dropout=input_dropout)
        self.word_mlp = nn.Sequential(nn.ReLU(), Mlp(input_width=width, width=width, dropout=input_dropout))
        self.token_mlp = Mlp(input_width=encoder_width, width=width, dropout=input_dropout)
        self.pool = QueryPool(width=width)
        self.layer = TextLayer(width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.pool_gate = nn.Parameter(torch.zeros(ROUNDS))  # how much of the pooled tokens is added to the frame token
        self.update_gate = nn.Parameter(torch.zeros(ROUNDS))  # how much of a round replaces the one before
        self.text_pool = TextPool(width=width)
        self.pyramid = ConvPyramid(width=width, strides=strides)
        self.moment_head = MomentHead(width=width, strides=strides)
        self.saliency_head = SaliencyHead(width=width)

    def forward(self, inputs: ModelInputs, *, contrast: BatchTexts | None = None) -> Outputs:
        """See `CoSTL.forward`."""
        words = self.word_mlp(self.word_projection(inputs.words))
        groups = QueryGroups.from_video(inputs.video, len(inputs.frame_mask), inputs.most_queries)
        mask = inputs.frame_mask[inputs.video]
        text = self.text_pool(words, inputs.word_mask)
        tokens = self.token_mlp(inputs.tokens)
        frames = mask.new_zeros(*mask.shape, words.shape[-1], dtype=words.dtype)
        for step in range(ROUNDS):
            pooled = self.pool(tokens, words, inputs.word_mask, groups)
            update = gather_per_query(tokens[:, :, 0], inputs.video) + self.pool_gate[step].tanh() * pooled
            share = self.update_gate[step].sigmoid() if step else 1.0
            frames = share * update + (1 - share) * frames
            frames = self.norm(self.layer(frames, mask, words, inputs.word_mask))
        query = unit_length(text) / TEMPERATURE
        similarities = frame_similarities(query, unit_length(tokens[:, :, 0]), inputs.video, contrast)
        levels, masks = self.pyramid(frames, mask)
        return apply_heads(self, levels, masks, text, similarities)


class QueryPool(nn.Module):
    """Each word attends to all tokens of a frame; then the maximum over the words in each channel."""

    def __init__(self, *, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "v t s d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        groups: QueryGroups,
    ) -> Float[Tensor, "b t d"]:
        """One vector for each query and frame."""
        query = groups.pack(self.query(words))
        scores = torch.einsum("vqld,vtsd->vqtls", query, self.key(tokens)) / tokens.shape[-1] ** 0.5
        attended = torch.einsum("vqtls,vtsd->vqtld", scores.softmax(-1), self.value(tokens))
        word_features = groups.unpack(attended) + words[:, None]
        # Minus infinity exists in every precision. A query has at least one real word.
        return word_features.masked_fill(~word_mask[:, None, :, None], -torch.inf).amax(2)


class ConvPyramid(nn.Module):
    """Scales of stride 1, 2, 4, ...: each a stack of strided convolutions over the frames."""

    def __init__(self, *, width: int, strides: tuple[int, ...]):
        super().__init__()
        self.scales = nn.ModuleList(Scale(width=width, halvings=i) for i in range(len(strides)))

    def forward(
        self, frames: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> tuple[list[Float[Tensor, "b _ d"]], list[Bool[Tensor, "b _"]]]:
        """One tensor for each scale and its mask; a coarse position is real if any clip under it is."""
        levels, masks = zip(*(scale(frames, mask) for scale in self.scales), strict=True)
        return list(levels), list(masks)


class Scale(nn.Module):
    """One scale of the pyramid: the frames after `halvings` strided convolutions."""

    def __init__(self, *, width: int, halvings: int):
        super().__init__()
        self.convs = nn.ModuleList(HalvingConv(width) for _ in range(halvings))

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b _ d"], Bool[Tensor, "b _"]]:
        """The positions of this scale and their mask."""
        for conv in self.convs:
            x = conv(x * mask[..., None])
            mask = halve_mask(mask)
        return F.relu(x), mask


class HalvingConv(nn.Module):
    """From two positions to one by a strided convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b _ d"]:
        """Half as many positions."""
        padded = F.pad(x, (0, 0, 0, x.shape[1] % 2)).transpose(1, 2)
        return F.relu(self.norm(self.conv(padded).transpose(1, 2)))

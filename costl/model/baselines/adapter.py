"""The patch-adapter baseline: queries pool the patches, and one layer refines the frames again and again.

After R2-Tuning (Liu et al. 2024): one block with shared weights goes from CLIP's last layer to earlier ones. In each
round the words pool the tokens of each frame, the result is added to the frame token through a gate, then words and
frames exchange. Written from the description in the paper, with the heads and losses of this project.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.baselines.cls import Heads, Mlp, TextLayer
from costl.model.clip_similarity import register_joint_space
from costl.model.contrast import Similarities, frame_similarities, unit_length
from costl.model.costl import Outputs, WordProjection
from costl.model.temporal import TextPool
from costl.model.tokens import QueryGroups, gather_per_query

TEMPERATURE = 0.07  # of the similarity between frames and sentences, as published


class AdapterModel(nn.Module):
    """Query-modulated pooling and recurrent refinement, then a plain pyramid of strided convolutions."""

    def __init__(
        self,
        *,
        encoder_width: int,
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
        register_joint_space(self, joint)
        self.word_projection = WordProjection(word_width=word_width, width=width, dropout=input_dropout)
        self.word_mlp = nn.Sequential(nn.ReLU(), Mlp(input_width=width, width=width, dropout=input_dropout))
        self.token_mlp = Mlp(input_width=encoder_width, width=width, dropout=input_dropout)
        self.pool = QueryPool(width=width)
        self.layer = TextLayer(width=width, heads=heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.pool_gate = nn.Parameter(torch.zeros(rounds))  # how much of the pooled tokens is added to the frame token
        self.update_gate = nn.Parameter(torch.zeros(rounds))  # how much of a round replaces the one before
        self.text_pool = TextPool(width=width)
        self.pyramid = ConvPyramid(width=width, strides=strides)
        self.heads = Heads(width=width, strides=strides)

    def forward(
        self,
        *,
        tokens: Float[Tensor, "v t s c"],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        words: Float[Tensor, "b l w"],
        word_mask: Bool[Tensor, "b l"],
        sentence: Float[Tensor, "b e"],
        most_queries: int | None = None,
        real_words: int | None = None,
        contrast: bool = True,
    ) -> Outputs:
        """Inputs and outputs are those of `CoSTL.forward`. A cache holds one layer of CLIP, which every round reads."""
        return self.refine([tokens], frame_mask, video, words, word_mask, most_queries=most_queries, contrast=contrast)

    def refine(
        self,
        layers: Sequence[Float[Tensor, "v t s c"]],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        words: Float[Tensor, "b l w"],
        word_mask: Bool[Tensor, "b l"],
        *,
        most_queries: int | None = None,
        contrast: bool = True,
    ) -> Outputs:
        """The outputs from the tokens of CLIP's last `layers`, the last one first.

        Each round reads the next layer. With more rounds than layers, the remaining rounds read the earliest layer.
        """
        word_features = self.word_mlp(self.word_projection(words))
        groups = QueryGroups.from_video(video, len(frame_mask), most_queries)
        mask = frame_mask[video]
        text = self.text_pool(word_features, word_mask)
        layer_features = [self.token_mlp(layer) for layer in layers]
        frames = mask.new_zeros(*mask.shape, word_features.shape[-1], dtype=word_features.dtype)
        for step in range(len(self.pool_gate)):
            tokens = layer_features[min(step, len(layer_features) - 1)]
            pooled = self.pool(tokens, word_features, word_mask, groups)
            update = gather_per_query(tokens[:, :, 0], video) + self.pool_gate[step].tanh() * pooled
            share = self.update_gate[step].sigmoid() if step else 1.0
            frames = share * update + (1 - share) * frames
            frames = self.norm(self.layer(frames, mask, word_features, word_mask))
        similarities = None
        if contrast:
            similarities = _layer_similarities([tokens[:, :, 0] for tokens in layer_features], text, video)
        levels, masks = self.pyramid(frames, mask)
        return self.heads(levels, masks, text, similarities)


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
    """Scales of stride 1, 2, 4, ...: each a stack of strided convolutions over the frames, without a top-down path."""

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
            x, mask = conv(x, mask)
        return F.relu(x), mask


class HalvingConv(nn.Module):
    """From two positions to one by a strided convolution; padding counts as zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b _ d"], Bool[Tensor, "b _"]]:
        """Half as many positions and their mask."""
        odd = x.shape[1] % 2
        padded = F.pad(x * mask[..., None], (0, 0, 0, odd)).transpose(1, 2)
        halved = F.relu(self.norm(self.conv(padded).transpose(1, 2)))
        return halved, F.pad(mask, (0, odd)).unflatten(1, (-1, 2)).any(-1)


def _layer_similarities(
    layers: Sequence[Float[Tensor, "v t d"]], text: Float[Tensor, "b d"], video: Int[Tensor, "b"]
) -> Similarities:
    """Cosine similarity over a temperature; the frames are the mean over the layers."""
    frames = torch.stack([unit_length(frames) for frames in layers]).mean(0)
    return frame_similarities(unit_length(text) / TEMPERATURE, frames, video)

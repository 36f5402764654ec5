"""The frame-token baseline: one token for each frame, one scale; and the parts that both baselines share.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from costl.model.contrast import BatchTexts, frame_similarities
from costl.model.costl import Outputs, WordProjection, apply_heads
from costl.model.heads import MomentHead, SaliencyHead
from costl.model.inputs import ModelInputs
from costl.model.temporal import sine_positions
from costl.model.tokens import gather_per_query


class ClsModel(nn.Module):
    """A transformer over CLIP's frame tokens and the words, at one scale, with the heads and losses of CoSTL."""

    has_attention_maps = False

    def __init__(
        self,
        *,
        encoder_width: int,
        word_width: int,
        joint_width: int,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        input_dropout: float,
    ):
        super().__init__()
        self.word_projection = WordProjection(word_width=word_width, width=width, dropout=input_dropout)
        self.sentence_projection = nn.Sequential(nn.LayerNorm(joint_width), nn.Linear(joint_width, width))
        self.token_mlp = Mlp(input_width=encoder_width, width=width, dropout=input_dropout)
        self.layers = nn.ModuleList(TextLayer(width=width, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.moment_head = MomentHead(width=width, strides=(1,))
        self.saliency_head = SaliencyHead(width=width)

    def forward(self, inputs: ModelInputs, *, contrast: BatchTexts | None = None) -> Outputs:
        """See `CoSTL.forward`. Only the first token of a frame is read."""
        frame_features = self.token_mlp(inputs.tokens[:, :, 0])
        words = self.word_projection(inputs.words)
        mask = inputs.frame_mask[inputs.video]
        sentence = self.sentence_projection(inputs.sentence)
        frames = gather_per_query(frame_features, inputs.video)
        for layer in self.layers:
            frames = layer(frames, mask, words, inputs.word_mask)
        query = sentence / math.sqrt(frame_features.shape[-1])
        similarities = frame_similarities(query, frame_features, inputs.video, contrast)
        return apply_heads(self, [self.norm(frames)], [mask], sentence, similarities)


class Mlp(nn.Module):
    """From the encoder's width to the model's width through two normalised layers, as is usual in the field."""

    def __init__(self, *, input_width: int, width: int, dropout: float):
        super().__init__()
        first = (nn.LayerNorm(input_width), nn.Dropout(dropout), nn.Linear(input_width, width), nn.ReLU())
        self.layers = nn.Sequential(*first, nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "*rest c"]) -> Float[Tensor, "*rest d"]:
        """One vector for each token. Padding is projected as well; masks exclude it later."""
        return self.layers(x)


class TextLayer(nn.Module):
    """Pre-norm layer: cross-attention to words, self-attention (both with sine positions), feed-forward."""

    def __init__(self, *, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        frames: Float[Tensor, "b t d"],
        frame_mask: Bool[Tensor, "b t"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "b t d"]:
        """The refined frames. Padding changes no real frame."""
        positions = sine_positions(frames.shape[1], frames.shape[2], frames.device)
        query = self.norms[0](frames) + positions
        attended, _ = self.cross_attention(query, words, words, key_padding_mask=~word_mask, need_weights=False)
        frames = frames + self.dropout(attended)
        value = self.norms[1](frames)
        query = value + positions
        attended, _ = self.self_attention(query, query, value, key_padding_mask=~frame_mask, need_weights=False)
        frames = frames + self.dropout(attended)
        return frames + self.dropout(self.feed_forward(self.norms[2](frames)))

"""CoSTL: the model as one short forward.

Axes of tensors, with the same letters in all annotations:

    b  queries of the batch                   c  width of an encoder (CLIP) token
    v  videos of the batch                    d  width of the model
    t  clips of a video                       e  width of the encoder's joint space of images and texts
    p  patches of a frame                     w  width of a cached word
    s  tokens of a frame: 1 + p               g  width of a position encoding
    l  words of a query                       h  attention heads
    x  texts compared with patches            k  patches on the short list
    m  moments of a query                     a  similarity heads of the contrast
    n  positions of all scales                u  every NEGATIVE_CLIP_STEP-th clip
    q  queries of one video, at most          _  any other length

A query is one sentence about one video. A clip is a cell of the feature grid, two seconds by default, with one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from costl.model.clip_similarity import clip_similarity
from costl.model.contrast import BatchTexts, Similarities
from costl.model.heads import MomentHead, SaliencyHead, anchors
from costl.model.inputs import ModelInputs
from costl.model.spatial import SpatialEncoder, SpatialOutput
from costl.model.temporal import PositionReader, Pyramid, TemporalLayer, TextPool, sine_positions


@dataclass(frozen=True)
class Outputs:
    """Outputs of the model for a batch, the scales one after another; lengths are in clips.

    `position_mask` is True for positions inside the video. `similarities` are for the contrastive loss, and None without
    `contrast`.
    """

    foreground: Float[Tensor, "b n"]
    spans: Float[Tensor, "b n 2"]
    position_mask: Bool[Tensor, "b n"]
    centres: Float[Tensor, "n"]
    strides: Float[Tensor, "n"]
    saliency: Float[Tensor, "b t"]
    similarities: Similarities | None


class WordProjection(nn.Module):
    """Projects cached words to the width of the model.

    A cached word has two halves, its own embedding and its output in context. Each has a layer norm of its own.
    """

    def __init__(self, *, word_width: int, width: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(word_width // 2) for _ in range(2))
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(word_width, width))

    def forward(self, words: Float[Tensor, "b l w"]) -> Float[Tensor, "b l d"]:
        """One vector for each word. Padding is projected as well; masks exclude it later."""
        halves = words.chunk(2, dim=-1)
        normed = [norm(half) for norm, half in zip(self.norms, halves, strict=True)]
        return self.project(torch.cat(normed, dim=-1))


class CoSTL(nn.Module):
    """Patch tokens and sentences -> moments and saliency; read `forward` top to bottom."""

    def __init__(
        self,
        *,
        spatial: SpatialEncoder,
        position_reader: PositionReader | None,
        layers: list[TemporalLayer],
        pyramid: Pyramid,
        moment_head: MomentHead,
        saliency_head: SaliencyHead,
        word_width: int,
        joint_width: int,
        logit_scale: float,
        width: int,
        dropout: float,
        clip_prior: bool,
    ):
        super().__init__()
        self.word_projection = WordProjection(word_width=word_width, width=width, dropout=dropout)
        # A unit vector of e numbers has entries of 1/sqrt(e): too small to learn from. The norm brings them to one.
        self.sentence_projection = nn.Sequential(nn.LayerNorm(joint_width), nn.Linear(joint_width, width))
        self.spatial = spatial
        self.similarity_projection = nn.Linear(1, width) if clip_prior else None
        self.text_pool = TextPool(width=width)
        self.position_reader = position_reader
        self.layers = nn.ModuleList(layers)
        self.pyramid = pyramid
        self.moment_head = moment_head
        self.saliency_head = saliency_head
        self.logit_scale: Tensor
        self.register_buffer("logit_scale", torch.tensor(logit_scale))  # of the encoder

    def forward(self, inputs: ModelInputs, *, contrast: BatchTexts | None = None) -> Outputs:
        """The outputs for some queries.

        With `contrast`, they include the similarities that the contrastive loss needs.
        """
        sentence = self.sentence_projection(inputs.sentence)
        words = self.word_projection(inputs.words)
        mask = inputs.frame_mask[inputs.video]
        spatial = self.spatial(inputs, sentence, words, contrast)
        frames = spatial.frames + 0.3 * sine_positions(mask.shape[1], sentence.shape[-1], sentence.device)
        if self.similarity_projection is not None:
            similarity = clip_similarity(inputs, self.logit_scale)
            frames = frames + self.similarity_projection(similarity[..., None])
        text = self.text_pool(words, inputs.word_mask)
        if self.position_reader is not None and spatial.head_positions is not None:
            frames = frames + self.position_reader(spatial.head_positions, mask, text)
        for layer in self.layers:
            frames = layer(frames, mask, words, inputs.word_mask, text)
        levels, masks = self.pyramid(frames, mask, text)
        return apply_heads(self, levels, masks, sentence, spatial.similarities)

    @property
    def has_attention_maps(self) -> bool:
        """Whether the model attends to patches: without the coarse step it does not."""
        return self.spatial.coarse_gate is not None

    def spatial_output(self, inputs: ModelInputs) -> SpatialOutput:
        """The output of the spatial encoder alone, with its attention."""
        return self.spatial(inputs, self.sentence_projection(inputs.sentence), self.word_projection(inputs.words))


def apply_heads(
    model: Any,
    levels: list[Float[Tensor, "b _ d"]],
    masks: list[Bool[Tensor, "b _"]],
    sentence: Float[Tensor, "b d"],
    similarities: Similarities | None,
) -> Outputs:
    """The outputs of the model's `moment_head` and `saliency_head`.

    `levels` and `masks` start with the finest scale, which is the one of saliency.
    """
    foreground, distances = model.moment_head(levels, masks)
    centres, strides = anchors(masks[0].shape[1], model.moment_head.strides, sentence.device)
    return Outputs(
        foreground=foreground,
        spans=torch.stack([centres - distances[..., 0], centres + distances[..., 1]], -1),
        position_mask=torch.cat(masks, 1),
        centres=centres,
        strides=strides,
        saliency=model.saliency_head(levels[0], masks[0], sentence),
        similarities=similarities,
    )

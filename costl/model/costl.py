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

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from costl.model.clip_similarity import clip_similarity, register_joint_space
from costl.model.contrast import Similarities
from costl.model.heads import MomentHead, SaliencyHead, anchors
from costl.model.spatial import SpatialEncoder, SpatialOutput
from costl.model.temporal import Pyramid, TemporalLayer, TextPool, sine_positions


@dataclass(frozen=True)
class Outputs:
    """Outputs of the model for a batch, the scales one after another; lengths are in clips.

    `position_mask` is True for positions inside the video. `similarities` are for the contrastive loss, None unless it
    asks for them.
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

    joint_norm_weight: Tensor
    joint_norm_bias: Tensor
    joint_projection: Tensor
    joint_norm_eps: float
    joint_logit_scale: float
    joint_normed: bool

    def __init__(
        self,
        *,
        spatial: SpatialEncoder,
        layers: list[TemporalLayer],
        pyramid: Pyramid,
        moment_head: MomentHead,
        saliency_head: SaliencyHead,
        word_width: int,
        joint: dict[str, Tensor],
        width: int,
        dropout: float,
        clip_prior: bool,
    ):
        super().__init__()
        joint_width = joint["projection"].shape[1]
        self.word_projection = WordProjection(word_width=word_width, width=width, dropout=dropout)
        # A unit vector of e numbers has entries of 1/sqrt(e): too small to learn from. The norm brings them to one.
        self.sentence_projection = nn.Sequential(nn.LayerNorm(joint_width), nn.Linear(joint_width, width))
        self.spatial = spatial
        self.similarity_projection = nn.Linear(1, width) if clip_prior else None
        self.text_pool = TextPool(width=width)
        self.layers = nn.ModuleList(layers)
        self.pyramid = pyramid
        self.moment_head = moment_head
        self.saliency_head = saliency_head
        register_joint_space(self, joint)

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
        """The outputs for a batch. `video[b]` is the index of the video of query b. Every mask is True where data is real.

        At most `most_queries` queries are about one video, and `real_words` words are not padding. A batch holds both
        numbers; without them they are read from the device, and the host waits for it. With `contrast`, the outputs
        include the similarities that the contrastive loss needs.
        """
        sentence_features = self.sentence_projection(sentence)
        word_features = self.word_projection(words)
        mask = frame_mask[video]
        spatial = self.spatial(
            tokens,
            video,
            sentence_features,
            word_features,
            word_mask,
            most_queries=most_queries,
            real_words=real_words,
            contrast=contrast,
        )
        positions = sine_positions(mask.shape[1], sentence_features.shape[-1], sentence_features.device)
        frames = spatial.frames + 0.3 * positions
        if self.similarity_projection is not None:
            similarity = clip_similarity(self, tokens, frame_mask, video, sentence)
            frames = frames + self.similarity_projection(similarity[..., None])
        text = self.text_pool(word_features, word_mask)
        for layer in self.layers:
            frames = layer(frames, mask, word_features, word_mask, text)
        levels, masks = self.pyramid(frames, mask, text)
        return apply_heads(self.moment_head, self.saliency_head, levels, masks, sentence_features, spatial.similarities)

    def spatial_output(
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
    ) -> SpatialOutput:
        """The output of the spatial encoder, with its attention, for the inputs that `forward` takes."""
        sentence_features = self.sentence_projection(sentence)
        word_features = self.word_projection(words)
        return self.spatial(
            tokens, video, sentence_features, word_features, word_mask, most_queries=most_queries, contrast=False
        )


def apply_heads(
    moment_head: MomentHead,
    saliency_head: SaliencyHead,
    levels: list[Float[Tensor, "b _ d"]],
    masks: list[Bool[Tensor, "b _"]],
    sentence: Float[Tensor, "b d"],
    similarities: Similarities | None,
) -> Outputs:
    """The outputs of both heads. `levels` and `masks` start with the finest scale, which is the one of saliency."""
    foreground, distances = moment_head(levels, masks)
    centres, strides = anchors(masks[0].shape[1], moment_head.strides, sentence.device)
    return Outputs(
        foreground=foreground,
        spans=torch.stack([centres - distances[..., 0], centres + distances[..., 1]], -1),
        position_mask=torch.cat(masks, 1),
        centres=centres,
        strides=strides,
        saliency=saliency_head(levels[0], masks[0], sentence),
        similarities=similarities,
    )



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
from torch.nn import functional as F

from costl.model.contrast import Similarities, unit_length
from costl.model.heads import MomentHead, SaliencyHead, anchors
from costl.model.spatial import SpatialEncoder, SpatialOutput
from costl.model.temporal import Pyramid, TemporalLayer, TextPool, sine_positions
from costl.training.precision import full_precision


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
            similarity = self._encoder_similarity(tokens, frame_mask, video, sentence)
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

    @torch.no_grad()
    def _encoder_similarity(
        self,
        tokens: Float[Tensor, "v t s c"],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        sentence: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b t"]:
        """Similarity of frame and sentence in the frozen CLIP, minus its mean over the video, times CLIP's logit scale.

        In float32: the similarities of a video differ little, and the scale multiplies a rounding error by a hundred.
        """
        frames = tokens[:, :, 0]
        mask = frame_mask[video]
        with full_precision(frames.device):
            if self.joint_normed:
                weight, bias = self.joint_norm_weight, self.joint_norm_bias
                frames = F.layer_norm(frames, frames.shape[-1:], weight, bias, self.joint_norm_eps)
            frame_embeddings = unit_length(frames @ self.joint_projection)
            similarity = torch.einsum("bte,be->bt", frame_embeddings[video], sentence)
            mean = (similarity * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            return (similarity - mean) * self.joint_logit_scale


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


_JOINT_TENSORS = ("norm_weight", "norm_bias", "projection")
_JOINT_NUMBERS = ("norm_eps", "logit_scale")


def register_joint_space(model: nn.Module, joint: dict[str, Tensor]) -> None:
    """Stores the encoder's joint space in the model: its tensors as buffers, its numbers as plain values.

    With a number on a device, the host would wait for it in every forward. Checkpoints store the numbers as tensors next
    to the weights, and an exported model identifies its CLIP by them.
    """
    for name in _JOINT_TENSORS:
        model.register_buffer(f"joint_{name}", joint[name])
    for name in _JOINT_NUMBERS:
        _set_joint_number(model, name, joint[name])
    # A switch that the cache decides, not a weight: it is not in checkpoints.
    model.joint_normed = bool(joint["normed"])  # type: ignore[assignment]
    # Both hooks have public names only since PyTorch 2.5.
    model._register_state_dict_hook(_write_joint_numbers)
    model._register_load_state_dict_pre_hook(_read_joint_numbers, with_module=True)


def _write_joint_numbers(model: nn.Module, weights: dict[str, Tensor], prefix: str, _: object) -> None:
    for name in _JOINT_NUMBERS:
        number = getattr(model, f"joint_{name}")
        weights[f"{prefix}joint_{name}"] = torch.tensor(number, dtype=torch.float32)


def _read_joint_numbers(
    model: nn.Module, weights: dict[str, Tensor], prefix: str, _: object, __: bool, missing: list[str], *___: object
) -> None:
    for name in _JOINT_NUMBERS:
        key = f"{prefix}joint_{name}"
        if key in weights:
            _set_joint_number(model, name, weights.pop(key))
        else:
            missing.append(key)


def _set_joint_number(model: nn.Module, name: str, number: Tensor) -> None:
    """Rounds the number to float32, as checkpoints store it: a trained and a loaded model agree to the last bit."""
    setattr(model, f"joint_{name}", number.to(torch.float32).item())

"""CoSTL: the model as one short forward, and the builder that turns settings into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from costl.config import Config
from costl.model.contrast import Match, unit_length
from costl.model.heads import MomentHead, SaliencyHead, anchors
from costl.model.spatial import Seen, SpatialEncoder
from costl.model.temporal import Pyramid, TemporalLayer, TextPool, time_waves
from costl.training.precision import full_precision


@dataclass(frozen=True)
class Outputs:
    """What the heads say about a batch. `n` counts the positions of all scales, one scale after another; lengths in clips.
    `match`: how well frames match texts, where that was asked for (`matching`)."""

    foreground: Float[Tensor, "b n"]
    spans: Float[Tensor, "b n 2"]
    positions: Bool[Tensor, "b n"]
    centres: Float[Tensor, "n"]
    strides: Float[Tensor, "n"]
    saliency: Float[Tensor, "b t"]
    match: Match | None


class WordTokens(nn.Module):
    """The two halves of a cached word (its own embedding, its meaning in context), each normed by itself, to model width."""

    def __init__(self, *, word_width: int, width: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(word_width // 2) for _ in range(2))
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(word_width, width))

    def forward(self, words: Float[Tensor, "b l w"]) -> Float[Tensor, "b l d"]:
        """Padding stays what it is; masks say so."""
        halves = words.chunk(2, dim=-1)
        return self.project(torch.cat([norm(half) for norm, half in zip(self.norms, halves, strict=True)], dim=-1))


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
        moments: MomentHead,
        saliency: SaliencyHead,
        word_width: int,
        joint: dict[str, Tensor],
        width: int,
        dropout: float,
        clip_prior: bool,
    ):
        super().__init__()
        self.words = WordTokens(word_width=word_width, width=width, dropout=dropout)
        # A unit vector of e numbers has entries of 1/sqrt(e): too small to learn from. The norm brings them to one.
        self.sentence = nn.Sequential(
            nn.LayerNorm(joint["projection"].shape[1]), nn.Linear(joint["projection"].shape[1], width)
        )
        self.spatial = spatial
        self.similarity = nn.Linear(1, width) if clip_prior else None
        self.text = TextPool(width=width)
        self.layers = nn.ModuleList(layers)
        self.pyramid = pyramid
        self.moments = moments
        self.saliency = saliency
        keep_joint(self, joint)

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
        """`video[b]` says which of the videos each sentence asks about; every mask is True where something is real.

        At most `most_queries` sentences ask about one video, and `real_words` words are not padding. A batch knows both;
        without them the device is asked, and the host waits for its answer.
        """
        query, asked, mask = self.sentence(sentence), self.words(words), frame_mask[video]
        seen = self.spatial(
            tokens,
            video,
            query,
            asked,
            word_mask,
            most_queries=most_queries,
            real_words=real_words,
            matching=matching,
        )
        frames = seen.frames + 0.3 * time_waves(mask.shape[1], query.shape[-1], query.device)
        if self.similarity is not None:
            frames = frames + self.similarity(self._clip_similarity(tokens, frame_mask, video, sentence)[..., None])
        text = self.text(asked, word_mask)
        for layer in self.layers:
            frames = layer(frames, mask, asked, word_mask, text)
        levels, masks = self.pyramid(frames, mask, text)
        return read_out(self.moments, self.saliency, levels, masks, query, seen.match)

    def look(
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
    ) -> Seen:
        """What the spatial encoder sees in the same inputs that `forward` takes, and where."""
        query, asked = self.sentence(sentence), self.words(words)
        return self.spatial(tokens, video, query, asked, word_mask, most_queries=most_queries, matching=False)

    @torch.no_grad()
    def _clip_similarity(
        self,
        tokens: Float[Tensor, "v t n c"],
        frame_mask: Bool[Tensor, "v t"],
        video: Int[Tensor, "b"],
        sentence: Float[Tensor, "b e"],
    ) -> Float[Tensor, "b t"]:
        """Frozen CLIP similarity of frames, centred over the video and times CLIP's own scale.

        In float32: the similarities of a video differ by little, and the scale makes a rounding error a hundred times as large.
        """
        used, mask = tokens[:, :, 0], frame_mask[video]
        with full_precision(used.device):
            if self.joint_normed:
                weight, bias = self.joint_norm_weight, self.joint_norm_bias
                used = F.layer_norm(used, used.shape[-1:], weight, bias, self.joint_norm_eps)
            space = unit_length(used @ self.joint_projection)
            like = torch.einsum("bte,be->bt", space[video], sentence)
            mean = (like * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            return (like - mean) * self.joint_logit_scale


def read_out(
    moments: MomentHead,
    saliency: SaliencyHead,
    levels: list[Float[Tensor, "b _ d"]],
    masks: list[Bool[Tensor, "b _"]],
    query: Float[Tensor, "b d"],
    match: Match | None,
) -> Outputs:
    """What both heads say: `levels` and their masks, the finest first; `query` is what saliency is asked about."""
    foreground, distances = moments(levels, masks)
    centres, strides = anchors(masks[0].shape[1], moments.strides, query.device)
    return Outputs(
        foreground=foreground,
        spans=torch.stack([centres - distances[..., 0], centres + distances[..., 1]], -1),
        positions=torch.cat(masks, 1),
        centres=centres,
        strides=strides,
        saliency=saliency(levels[0], masks[0], query),
        match=match,
    )


_JOINT_TENSORS = ("norm_weight", "norm_bias", "projection")
_JOINT_NUMBERS = ("norm_eps", "logit_scale")


def keep_joint(model: nn.Module, joint: dict[str, Tensor]) -> None:
    """Stores CLIP's joint space in the model: its tensors as buffers, its numbers as plain values.

    A number on a device would make the host wait for it in every forward. Checkpoints hold the numbers as tensors next to the
    weights all the same, as they always have: an exported model knows its CLIP by them.
    """
    for name in _JOINT_TENSORS:
        model.register_buffer(f"joint_{name}", joint[name])
    for name in _JOINT_NUMBERS:
        _set_number(model, name, joint[name])
    # Not a weight but a switch, which the cache decides: checkpoints do without it.
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
            _set_number(model, name, weights.pop(key))
        else:
            missing.append(key)


def _set_number(model: nn.Module, name: str, number: Tensor) -> None:
    """With the precision that it has in a checkpoint, so that a trained model and a loaded one agree to the last bit."""
    setattr(model, f"joint_{name}", number.to(torch.float32).item())


def build_model(
    config: Config, *, clip_width: int, word_width: int, patch_grid: tuple[int, int], joint: dict[str, Tensor]
) -> CoSTL:
    """The model of `config` for features of these sizes; `joint` holds CLIP's map into its joint space (see the cache)."""
    width, heads, dropout = config.model.width, config.model.heads, config.model.dropout
    temporal, strides = config.temporal, tuple(config.temporal.strides)
    layer = {"width": width, "heads": heads, "kernel": temporal.kernel, "null_tokens": temporal.null_tokens}
    return CoSTL(
        spatial=SpatialEncoder(
            clip_width=clip_width,
            width=width,
            patch_grid=patch_grid,
            heads=heads,
            steps=config.spatial.steps,
            top_k=config.spatial.top_k,
            dropout=config.model.input_dropout,
        ),
        layers=[TemporalLayer(**layer, dropout=dropout) for _ in range(temporal.layers)],
        pyramid=Pyramid(width=width, strides=strides, kernel=temporal.kernel, top_down=temporal.top_down),
        moments=MomentHead(width=width, strides=strides),
        saliency=SaliencyHead(width=width),
        word_width=word_width,
        joint=joint,
        width=width,
        dropout=config.model.input_dropout,
        clip_prior=config.spatial.clip_prior,
    )

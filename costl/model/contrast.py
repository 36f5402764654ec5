"""Similarities between frames and texts for the contrastive loss: of a query's own video and of all videos of a batch.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from costl.model.inputs import ModelInputs
from costl.model.tokens import NormalisedTokens, QueryGroups, gather_per_query, inner_products

NEGATIVE_CLIP_STEP = 2  # negatives are taken from every second clip: neighbouring clips look alike
MAX_CONTRAST_PATCHES = 100  # of each frame, at most so many patches are compared with texts
_CLIPS = [slice(first, None, NEGATIVE_CLIP_STEP) for first in range(NEGATIVE_CLIP_STEP)]  # negatives, then the others


@dataclass(frozen=True)
class Similarities:
    """Similarities of queries and frames, one for each similarity head (the whole sentence, its words).

    `positives` are with the clips of the query's own video, `negatives` with every NEGATIVE_CLIP_STEP-th clip of every
    video, the own one included. The loss masks out what does not count.
    """

    positives: Float[Tensor, "a b t"]
    negatives: Float[Tensor, "a b v u"]


@dataclass(frozen=True)
class BatchTexts:
    """The texts that are compared with the videos of the inputs: those of all queries of the batch.

    `gather` maps rows of the inputs, one for each query, to rows of the batch. It differs from the identity only when
    several processes share a batch, each with the inputs of some of its videos. `word_mask` and `real_words` are those of
    the whole batch.
    """

    word_mask: Bool[Tensor, "b l"]
    real_words: int
    gather: Callable[[Tensor], Tensor]

    @classmethod
    def of_inputs(cls, inputs: ModelInputs) -> BatchTexts:
        """The texts of the inputs, which are the whole batch."""
        return cls(inputs.word_mask, inputs.real_words, lambda rows: rows)


def frame_similarities(
    query: Float[Tensor, "b c"], frames: Float[Tensor, "v t c"], video: Int[Tensor, "b"], batch_texts: BatchTexts | None
) -> Similarities | None:
    """Inner products, where each query and each frame is one vector; None without `batch_texts`."""
    if batch_texts is None:
        return None
    texts = batch_texts.gather(query)
    return Similarities(
        positives=torch.einsum("bc,btc->bt", query, gather_per_query(frames, video))[None],
        negatives=torch.einsum("bc,vtc->bvt", texts, frames[:, ::NEGATIVE_CLIP_STEP])[None],
    )


def patch_similarities(
    texts: Float[Tensor, "b x c"],
    word_mask: Bool[Tensor, "b l"],
    tokens: NormalisedTokens,
    groups: QueryGroups,
    batch_texts: BatchTexts | None,
) -> Similarities | None:
    """Similarities of frames and texts by the patches; None without `batch_texts`.

    Of a fine grid only some patches are compared: neighbours look alike. This is still most of a training step, so it
    leaves out words that are padding.
    """
    if batch_texts is None:
        return None
    patch_step = math.ceil((tokens.raw.shape[2] - 1) / MAX_CONTRAST_PATCHES)
    own_texts = groups.pack(texts).flatten(1, 2)
    all_texts = batch_texts.gather(texts)
    text_index = _real_text_index(all_texts, batch_texts)
    real_texts = all_texts.flatten(0, 1).index_select(0, text_index)
    positives = []
    negatives = []
    for videos in tokens.parts():
        own = own_texts[videos]
        own_and_real = torch.cat([own, real_texts.expand(len(own), -1, -1)], 1)
        with_negatives, *others = (tokens.patches(videos, clips, patch_step) for clips in _CLIPS)
        own_scores, real_scores = _soft_maximum(with_negatives, own_and_real).split([own.shape[1], len(real_texts)], 2)
        positives.append(torch.cat([own_scores, *(_soft_maximum(patches, own) for patches in others)], 1))
        negatives.append(real_scores)
    return Similarities(
        positives=pool_similarities(_in_order(positives, groups), word_mask),
        negatives=pool_similarities(_with_padding(negatives, text_index, all_texts), batch_texts.word_mask),
    )


def _soft_maximum(patches: Float[Tensor, "v t p c"], texts: Float[Tensor, "v x c"]) -> Float[Tensor, "v t x"]:
    """The inner product of each text with the patches of each frame, as a soft maximum over the patches."""
    return inner_products(patches, texts).float().logsumexp(2)


def _in_order(scores: list[Float[Tensor, "_ t y"]], groups: QueryGroups) -> Float[Tensor, "b x t"]:
    """The scores of each query with its own video; in `scores`, the clips come in the order of `_CLIPS`."""
    of_videos = torch.cat(scores)
    clips = torch.arange(of_videos.shape[1], device=of_videos.device)
    order = torch.cat([clips[subset] for subset in _CLIPS]).argsort()
    return groups.unpack(of_videos.index_select(1, order).transpose(1, 2).unflatten(1, (groups.most_queries, -1)))


def _with_padding(
    scores: list[Float[Tensor, "_ u r"]], text_index: Int[Tensor, "r"], texts: Float[Tensor, "b x c"]
) -> Float[Tensor, "b x v u"]:
    """The scores of all texts, from those of the texts with these indices; zero for all others, which are padding."""
    real_scores = torch.cat(scores).movedim(2, 0)
    zeros = real_scores.new_zeros(texts.shape[0] * texts.shape[1], *real_scores.shape[1:])
    return zeros.index_copy(0, text_index, real_scores).unflatten(0, texts.shape[:2])


def _real_text_index(texts: Float[Tensor, "b x c"], batch_texts: BatchTexts) -> Int[Tensor, "r"]:
    """Indices of the texts that are not padding, in order. A sort: `nonzero` would make the host wait for the device."""
    is_real = F.pad(batch_texts.word_mask, (1, 0), value=True)[:, : texts.shape[1]].flatten()
    words = batch_texts.real_words if texts.shape[1] > 1 else 0
    return is_real.int().argsort(stable=True, descending=True)[: len(texts) + words]


def pool_similarities(scores: Float[Tensor, "b x *rest"], word_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "a b *rest"]:
    """From one score for each text to one for each similarity head: the whole sentence, and the mean over its words.

    The sentence is the first text. The words follow it if the model compares them, else there is one head (late
    interaction, after Yao et al. 2022). `scores`: of each text, a soft maximum over the patches of a frame.
    """
    if scores.shape[1] == 1:
        return scores.transpose(0, 1)
    word_weights = word_mask / word_mask.sum(1, keepdim=True)
    word_mean = torch.einsum("bl...,bl->b...", scores[:, 1:], word_weights)
    return torch.stack([scores[:, 0], word_mean])


def unit_length(x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """Vectors of length one, in float32: in float16, the 1e-12 that keeps a zero vector from a division by zero is 0."""
    return F.normalize(x.float(), dim=-1)

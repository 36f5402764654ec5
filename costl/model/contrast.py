"""How well frames match texts, for the contrast: in frames of its own video and in those of all others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from costl.model.tokens import Asks, Tokens, of_each, score_own

RIVAL_STEP = 2  # of the frames of other videos every second is enough to learn from: neighbours look alike
MATCHED_PATCHES = 100  # at most so many of a frame are matched with texts for the contrast


@dataclass(frozen=True)
class Match:
    """How well frames match texts, compared in `s` ways (by the whole sentence, by its words): the frames of a sentence's
    `own` video, and its `rivals`, every RIVAL_STEP-th frame of every video of the batch."""

    own: Float[Tensor, "s b t"]
    rivals: Float[Tensor, "s b v u"]


def match_frames(asked: Float[Tensor, "b c"], frames: Float[Tensor, "v t c"], video: Int[Tensor, "b"]) -> Match:
    """How well frames match sentences where each is one vector: their inner product."""
    return Match(
        own=torch.einsum("bc,btc->bt", asked, of_each(frames, video))[None],
        rivals=frame_rivals(asked, frames),
    )


def frame_rivals(asked: Float[Tensor, "b c"], frames: Float[Tensor, "v t c"]) -> Float[Tensor, "1 b v u"]:
    """How well the frames of every video match sentences where each is one vector."""
    return torch.einsum("bc,vtc->bvt", asked, frames[:, ::RIVAL_STEP])[None]


def compared(best: Float[Tensor, "b m *rest"], word_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "s b *rest"]:
    """How well frames match the whole sentence, which comes first of the `m` texts, and how well the mean of its words, where
    there are any (late interaction, after Yao et al. 2022). `best`: each text with a frame's best patches (a soft maximum)."""
    if best.shape[1] == 1:
        return best.transpose(0, 1)
    share = word_mask / word_mask.sum(1, keepdim=True)
    return torch.stack([best[:, 0], torch.einsum("bl...,bl->b...", best[:, 1:], share)])


def unit_length(x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """Vectors of length one, in float32: the 1e-12 that keeps a zero vector from a division by zero is itself 0 in float16."""
    return F.normalize(x.float(), dim=-1)


def match_texts(
    texts: Float[Tensor, "b m c"],
    word_mask: Bool[Tensor, "b l"],
    tokens: Tokens,
    asks: Asks,
    real_words: int | None = None,
) -> Match:
    """How well frames match the texts by their patches; of a fine grid, whose neighbours look alike, some stand for all."""
    own = score_own(texts, tokens.some(1, _thinned(tokens)), asks).logsumexp(-1)
    return Match(compared(own, word_mask), match_rivals(texts, word_mask, tokens, real_words))


def match_rivals(
    texts: Float[Tensor, "b m c"], word_mask: Bool[Tensor, "b l"], tokens: Tokens, real_words: int | None = None
) -> Float[Tensor, "s b v u"]:
    """How well the frames of every video match these texts. Being most of a training step, it leaves out words that are
    padding; `real_words` of the batch are not (None: the device is asked)."""
    some = tokens.some(RIVAL_STEP, _thinned(tokens))
    rows = _real_texts(texts, word_mask, real_words)
    real = texts.flatten(0, 1).index_select(0, rows)
    best = some.scores(real.expand(len(some.raw), -1, -1)).logsumexp(-1)
    blank = best.new_zeros(texts.shape[0] * texts.shape[1], len(best), best.shape[-1])
    filled = blank.index_copy(0, rows, best.transpose(0, 1))
    return compared(filled.unflatten(0, texts.shape[:2]), word_mask)


def _real_texts(
    texts: Float[Tensor, "b m c"], word_mask: Bool[Tensor, "b l"], real_words: int | None
) -> Int[Tensor, "r"]:
    """The numbers of the texts that are not padding, in order. A sort, because `nonzero` makes the host wait for the device."""
    real = F.pad(word_mask, (1, 0), value=True)[:, : texts.shape[1]].flatten()
    count = len(texts)
    if texts.shape[1] > 1:
        count += int(word_mask.sum()) if real_words is None else real_words
    return real.int().argsort(stable=True, descending=True)[:count]


def _thinned(tokens: Tokens) -> int:
    return math.ceil((tokens.raw.shape[2] - 1) / MATCHED_PATCHES)

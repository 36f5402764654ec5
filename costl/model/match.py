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


def match_texts(texts: Float[Tensor, "b m c"], word_mask: Bool[Tensor, "b l"], tokens: Tokens, asks: Asks) -> Match:
    """How well frames match the texts by their patches; of a fine grid, whose neighbours look alike, some stand for all."""
    own = score_own(texts, tokens.some(1, _thinned(tokens)), asks).logsumexp(-1)
    return Match(compared(own, word_mask), match_rivals(texts, word_mask, tokens))


def match_rivals(
    texts: Float[Tensor, "b m c"], word_mask: Bool[Tensor, "b l"], tokens: Tokens
) -> Float[Tensor, "s b v u"]:
    """How well the frames of every video match these texts. Being most of a training step, it leaves out words that are
    padding."""
    real, some = F.pad(word_mask, (1, 0), value=True)[:, : texts.shape[1]], tokens.some(RIVAL_STEP, _thinned(tokens))
    best = some.scores(texts[real].expand(len(some.raw), -1, -1)).logsumexp(-1)
    blank = best.new_zeros(*real.shape, len(best), best.shape[-1])
    return compared(blank.index_put(real.nonzero(as_tuple=True), best.transpose(0, 1)), word_mask)


def _thinned(tokens: Tokens) -> int:
    return math.ceil((tokens.raw.shape[2] - 1) / MATCHED_PATCHES)

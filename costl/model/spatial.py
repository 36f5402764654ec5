"""Looks inside the frames: which patches matter for a sentence (step one), and what its words find there (step two)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class FrameTokens(nn.Module):
    """CLIP tokens to model width, once per video however many sentences ask about it."""

    def __init__(self, *, clip_width: int, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(clip_width)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(clip_width, width)

    def forward(self, tokens: Float[Tensor, "v t n c"]) -> tuple[Float[Tensor, "v t d"], Float[Tensor, "v t p d"]]:
        """`tokens` [v t 1+p c] -> the frame token [v t d] and the patches [v t p d]."""
        kept = self.dropout(
            tokens.new_ones(len(tokens), 1, 1, tokens.shape[-1])
        )  # channels of a video, not single values
        projected = self.project(self.norm(tokens) * kept)
        return projected[:, :, 0], projected[:, :, 1:]


@dataclass(frozen=True)
class Asks:
    """Which sentence asks about which video, so that work on a video's patches is one matrix product for all that ask.

    `video[b]` is the video of sentence b, `slot[b]` its number among the sentences of that video.
    """

    video: Int[Tensor, "b"]
    slot: Int[Tensor, "b"]

    @classmethod
    def of(cls, video: Int[Tensor, "b"]) -> Asks:
        """Numbers the sentences of each video."""
        same = video[:, None] == video
        return cls(video, same.tril(-1).sum(1))

    def by_video(self, x: Float[Tensor, "b *rest"]) -> Float[Tensor, "v q *rest"]:
        """One row a sentence -> one row a video, zeros where a video is asked less often than another."""
        out = x.new_zeros(int(self.video.max()) + 1, int(self.slot.max()) + 1, *x.shape[1:])
        return out.index_put((self.video, self.slot), x)

    def by_query(self, x: Float[Tensor, "v q *rest"]) -> Float[Tensor, "b *rest"]:
        """The way back."""
        return x[self.video, self.slot]


@dataclass(frozen=True)
class Where:
    """What step one found: a soft `summary` of the relevant regions, every patch's `share` of it, and the `short_list` of
    the best patches with their keys and which they are (`chosen`)."""

    summary: Float[Tensor, "b t d"]
    share: Float[Tensor, "b t p"]
    short_list: Float[Tensor, "b t k d"]
    keys: Float[Tensor, "b t k d"]
    chosen: Int[Tensor, "b t k"]


@dataclass(frozen=True)
class What:
    """What step two found: which patches of the short list every word means (`by_word`, its last column the null patch),
    how much each head listens to it (`heard`), and what follows from both, each head's `attention` over the short list
    (what is missing to 1 found nothing) and the `evidence` of the frame."""

    evidence: Float[Tensor, "b t d"]
    attention: Float[Tensor, "b h t k"]
    by_word: Float[Tensor, "b t l n"]
    heard: Float[Tensor, "b h l"]


@dataclass(frozen=True)
class Seen:
    """What the encoder made of a batch: `frames` as their sentence sees them, how well every frame of the batch matches
    every text (`match`: by the whole sentence, then by its words), and what each step found, None for a step that this
    encoder does not have."""

    frames: Float[Tensor, "b t d"]
    match: Float[Tensor, "s b v t"]
    where: Where | None = None
    what: What | None = None


def match_frames(
    asked: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"], keys: Float[Tensor, "v t p d"]
) -> Float[Tensor, "b v t"]:
    """How well every frame of every video matches every text: each word by the soft maximum over the regions, the mean
    over the words (late interaction, after Yao et al. 2022); a sentence is a text of one word."""
    best = torch.einsum("vtpd,bld->bvtlp", keys, asked).logsumexp(-1)
    return torch.einsum("bvtl,bl->bvt", best, mask / mask.sum(1, keepdim=True))


class WhereStep(nn.Module):
    """Step one, coarse: the sentence scores every patch and keeps the `top_k` best.

    The score is a learned match plus, with a learned weight, the frozen CLIP similarity of patch and sentence. Cost is
    linear in the number of patches: one inner product each.
    """

    def __init__(self, *, width: int, top_k: int):
        super().__init__()
        self.query = _telling(width)
        self.prior_weight = nn.Parameter(torch.tensor(0.5))
        self.top_k = top_k

    def ask(self, sentence: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What the keys of the patches are compared with."""
        return self.query(sentence) / math.sqrt(sentence.shape[-1])

    def forward(
        self,
        patches: Float[Tensor, "v t p d"],
        keys: Float[Tensor, "v t p d"],
        sentence: Float[Tensor, "b d"],
        asks: Asks,
        prior: Float[Tensor, "b t p"] | None,
    ) -> Where:
        """Scores, shares, the best; see `Where`."""
        score = asks.by_query(torch.einsum("vtpd,vqd->vqtp", keys, asks.by_video(self.ask(sentence))))
        if prior is not None:
            score = score + self.prior_weight * prior
        share = score.softmax(-1)
        best = share.topk(min(self.top_k, share.shape[-1]), dim=-1).indices
        here = asks.video[:, None, None], torch.arange(best.shape[1], device=best.device)[:, None], best
        return Where(
            summary=asks.by_query(torch.einsum("vqtp,vtpd->vqtd", asks.by_video(share), patches)),
            share=share,
            short_list=patches[here],
            keys=keys[here],
            chosen=best,
        )


class WhatStep(nn.Module):
    """Step two, fine: every word finds its own patches on the short list; heads listen to words by the part they play.

    A learned null patch lets a word say that it found nothing. Whom a head listens to depends on the words alone, not on
    the frame: so it follows one thing through the video, the subject of the sentence or its partner. Heads begin with
    different places in the sentence, from its first word to its last. Cost does not depend on the number of patches.
    """

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.query = _telling(width)
        self.null = nn.Linear(width, 1)
        self.part = nn.Linear(width, heads)
        self.order = nn.Parameter(torch.linspace(-5, 5, heads))
        self.value = nn.Parameter(torch.randn(heads, width, width // heads) / math.sqrt(width))
        self.out = nn.Linear(width, width)

    def ask(self, words: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What the keys of the patches are compared with."""
        return self.query(words) / math.sqrt(words.shape[-1])

    def forward(
        self,
        short_list: Float[Tensor, "b t k d"],
        keys: Float[Tensor, "b t k d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
    ) -> What:
        """Evidence, and the attention that brought it; see `What`."""
        score = torch.einsum("bld,btkd->btlk", self.ask(words), keys)
        null = (self.null(words) + math.log(2))[:, None].expand(-1, score.shape[1], -1, -1)
        by_word = torch.cat([score, null], -1).softmax(-1)
        part = self.part(words) + self.order * _standing(word_mask)[..., None]
        heard = part.masked_fill(~word_mask[..., None], -torch.inf).softmax(1).transpose(1, 2)
        attention = torch.einsum("bhl,btlk->bhtk", heard, by_word[..., :-1])
        gathered = torch.einsum("bhtk,btkd->bthd", attention, short_list)
        evidence = self.out(torch.einsum("bthd,hde->bthe", gathered, self.value).flatten(2))
        return What(evidence=evidence, attention=attention, by_word=by_word, heard=heard)


def _standing(word_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Where each word stands in its sentence: -0.5 the first, 0.5 the last."""
    number = word_mask.cumsum(1) - 1
    return number / (word_mask.sum(1, keepdim=True) - 1).clamp(min=1) - 0.5


class SpatialEncoder(nn.Module):
    """Frame = frame token + gate(what step one found) + gate(what step two found).

    Both steps compare what is asked with the same keys of the patches. Each says what it found and where: the mean of the
    patches' places travels beside their contents. Added to the contents, as position embeddings are, it drowned: the
    sample world's 'on the left' was not learned at all.
    """

    def __init__(
        self,
        *,
        clip_width: int,
        width: int,
        patch_grid: tuple[int, int],
        heads: int,
        steps: int,
        top_k: int,
        dropout: float,
    ):
        super().__init__()
        self.tokens = FrameTokens(clip_width=clip_width, width=width, dropout=dropout)
        self.places: Tensor
        places = place_waves(*patch_grid)
        self.register_buffer("places", places, persistent=False)
        self.key = _telling(width) if steps >= 1 else None
        self.where = WhereStep(width=width, top_k=top_k) if steps >= 1 else None
        self.what = WhatStep(width=width, heads=heads) if steps >= 2 else None
        self.where_gate = _Gate(width=width, places=places.shape[1]) if steps >= 1 else None
        self.what_gate = _Gate(width=width, places=heads * (places.shape[1] + 1)) if steps >= 2 else None

    def forward(
        self,
        tokens: Float[Tensor, "v t n c"],
        video: Int[Tensor, "b"],
        sentence: Float[Tensor, "b d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        prior: Float[Tensor, "b t p"] | None,
    ) -> Seen:
        """-> frames as their sentence sees them, with all that the steps found on the way."""
        plain, patches = self.tokens(tokens)
        asked, one = sentence[:, None], word_mask.new_ones(len(words), 1)
        if self.where is None or self.key is None or self.where_gate is None:
            return Seen(plain[video], match_frames(asked / math.sqrt(plain.shape[-1]), one, plain[:, :, None])[None])
        keys = self.key(patches)
        where = self.where(patches, keys, sentence, Asks.of(video), prior)
        frames = plain[video] + self.where_gate(where.summary, where.share @ self.places)
        match = match_frames(self.where.ask(asked), one, keys)
        if self.what is None or self.what_gate is None:
            return Seen(frames, match[None], where)
        what = self.what(where.short_list, where.keys, words, word_mask)
        frames = frames + self.what_gate(what.evidence, self._spots(what, where).flatten(2))
        return Seen(frames, torch.stack([match, match_frames(self.what.ask(words), word_mask, keys)]), where, what)

    def _spots(self, what: What, where: Where) -> Float[Tensor, "b t h w"]:
        """Where each head found what it found, and how sure it is that it found anything, from -1 to 1."""
        found = what.attention.sum(-1)
        place = torch.einsum("bhtk,btkw->bthw", what.attention / (found[..., None] + 1e-4), self.places[where.chosen])
        return torch.cat([place, 2 * found.transpose(1, 2)[..., None] - 1], -1)


def _telling(width: int) -> nn.Linear:
    """A map whose products tell patches apart from the start: scores begin with a variance of about one.

    With torch's own beginning it is 0.01, all patches are alike, and the first two epochs go by until they are not.
    """
    linear = nn.Linear(width, width)
    nn.init.normal_(linear.weight, std=math.sqrt(3 / width))  # what comes in has a variance of 1/3
    return linear


class _Gate(nn.Module):
    """Contents (normed) through a map that starts at zero; places through one that starts open.

    Closed as well, the place path never opened: nothing after it knew yet how to use a place, so no gradient asked for it.
    """

    def __init__(self, *, width: int, places: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.content = nn.Linear(width, width, bias=False)
        self.place = nn.Linear(places, width, bias=False)
        nn.init.zeros_(self.content.weight)
        nn.init.normal_(self.place.weight, std=math.sqrt(2 / places))  # waves have variance 1/2: one comes out

    def forward(self, content: Float[Tensor, "b t d"], place: Float[Tensor, "b t w"]) -> Float[Tensor, "b t d"]:
        return self.content(self.norm(content)) + self.place(place)


_PLACE_WAVES = 6


def place_waves(rows: int, columns: int) -> Float[Tensor, "p w"]:
    """Each patch's centre, [rows*columns 4*waves+2]: sines and cosines, half a period to several across the frame, and
    the plain coordinates with variance one, whose differences over time are motion."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    turns = torch.pi * 2 ** (torch.arange(_PLACE_WAVES) / 2)
    angle = torch.cat([y.reshape(-1, 1) * turns, x.reshape(-1, 1) * turns], dim=1)
    plain = torch.stack([y.flatten() - 0.5, x.flatten() - 0.5], dim=1) * math.sqrt(12)
    return torch.cat([angle.sin(), angle.cos(), plain], dim=1)

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
    """What step one found: a soft `summary` of the relevant regions, every patch's `share` of it, the `short_list` of the
    best patches with their log-shares and which they are (`chosen`), and how well every frame of every video of the
    batch matches the sentence by its best regions (`match`)."""

    summary: Float[Tensor, "b t d"]
    share: Float[Tensor, "b t p"]
    short_list: Float[Tensor, "b t k d"]
    log_share: Float[Tensor, "b t k"]
    chosen: Int[Tensor, "b t k"]
    match: Float[Tensor, "b v t"]


@dataclass(frozen=True)
class What:
    """What step two found: the `evidence` of every frame and each head's `attention` over the short list (what is missing
    to 1 found nothing), which is what every word attends to (`by_word`, its last column the null patch) in the mix of how
    much each word is `heard`."""

    evidence: Float[Tensor, "b t d"]
    attention: Float[Tensor, "b h t k"]
    by_word: Float[Tensor, "b h t l n"]
    heard: Float[Tensor, "b h t l"]


@dataclass(frozen=True)
class Seen:
    """What the encoder made of a batch: `frames` as their sentence sees them, how well every frame of the batch matches
    every sentence (`match`), and what each step found, None for a step that this encoder does not have."""

    frames: Float[Tensor, "b t d"]
    match: Float[Tensor, "b v t"]
    where: Where | None = None
    what: What | None = None


class WhereStep(nn.Module):
    """Step one, coarse: the sentence scores every patch and keeps the `top_k` best.

    The score is a learned match plus, with a learned weight, the frozen CLIP similarity of patch and sentence. Cost is
    linear in the number of patches: one inner product each.
    """

    def __init__(self, *, width: int, top_k: int):
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.prior_weight = nn.Parameter(torch.tensor(0.5))
        self.top_k = top_k

    def forward(
        self,
        patches: Float[Tensor, "v t p d"],
        sentence: Float[Tensor, "b d"],
        asks: Asks,
        prior: Float[Tensor, "b t p"] | None,
    ) -> Where:
        """Scores, shares, the best; see `Where`."""
        every = torch.einsum("vtpd,bd->bvtp", self.key(patches), self.query(sentence) / math.sqrt(patches.shape[-1]))
        score = every[torch.arange(len(sentence), device=every.device), asks.video]
        if prior is not None:
            score = score + self.prior_weight * prior
        log_share = score.log_softmax(-1)
        share = asks.by_video(log_share.exp())
        best_share, best = log_share.topk(min(self.top_k, log_share.shape[-1]), dim=-1)
        frame = torch.arange(best.shape[1], device=best.device)[:, None]
        return Where(
            summary=asks.by_query(torch.einsum("vqtp,vtpd->vqtd", share, patches)),
            share=log_share.exp(),
            short_list=patches[asks.video[:, None, None], frame, best],
            log_share=best_share,
            chosen=best,
            match=every.logsumexp(-1),
        )


class WhatStep(nn.Module):
    """Step two, fine: every word, shifted by what step one saw, attends to the short list and brings back its evidence.

    A learned null patch lets a word say that it found nothing. Each head pools over the words by how well they matched
    and by the part they play, so that one head can carry the subject of the sentence and another its partner. Cost does
    not depend on the number of patches.
    """

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.shift = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.null_key = nn.Parameter(torch.zeros(heads, width // heads))
        self.role = nn.Linear(width, heads)
        self.match_weight = nn.Parameter(torch.ones(heads))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        short_list: Float[Tensor, "b t k d"],
        log_share: Float[Tensor, "b t k"],
        summary: Float[Tensor, "b t d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
    ) -> What:
        """Evidence, and the attention that brought it; see `What`."""
        asked = (
            self._heads(self.query(words))[:, :, None] + self._heads(self.shift(summary))[:, :, :, None]
        )  # b h t l e
        keys, values = self._heads(self.key(short_list)), self._heads(self.value(short_list))  # b h t k e
        scale = 1 / math.sqrt(keys.shape[-1])
        score = torch.einsum("bhtle,bhtke->bhtlk", asked, keys) * scale + log_share[:, None, :, None]
        null = torch.einsum("bhtle,he->bhtl", asked, self.null_key)[..., None] * scale - math.log(8)
        by_word = torch.cat([score, null], -1).softmax(-1)
        matched = torch.logsumexp(score, -1) - null[..., 0]  # log-odds that the word found something
        part = self.role(words).permute(0, 2, 1)[:, :, None] + self.match_weight[:, None, None] * matched
        heard = part.masked_fill(~word_mask[:, None, None], -torch.inf).softmax(-1)
        attention = torch.einsum("bhtl,bhtlk->bhtk", heard, by_word[..., :-1])
        evidence = self.out(torch.einsum("bhtk,bhtke->bthe", attention, values).flatten(2))
        return What(evidence=evidence, attention=attention, by_word=by_word, heard=heard)

    def _heads(self, x: Tensor) -> Tensor:
        """[b ... d] -> [b h ... e]."""
        return x.unflatten(-1, (self.heads, -1)).movedim(-2, 1)


class SpatialEncoder(nn.Module):
    """Frame = frame token + gate(what step one found) + gate(what step two found).

    Each step says what it found and where: the attention's mean of the patches' places travels beside their contents. Added
    to the contents, as position embeddings are, it drowned: the sample world's 'on the left' was not learned at all.
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
        self.where = WhereStep(width=width, top_k=top_k) if steps >= 1 else None
        self.what = WhatStep(width=width, heads=heads) if steps >= 2 else None
        self.where_gate = _Gate(width=width, places=places.shape[1]) if steps >= 1 else None
        self.what_gate = _Gate(width=width, places=heads * places.shape[1]) if steps >= 2 else None

    def forward(
        self,
        tokens: Float[Tensor, "v t n c"],
        video: Int[Tensor, "b"],
        sentence: Float[Tensor, "b d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        prior: Float[Tensor, "b t p"] | None,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b v t"]]:
        """-> frames as their sentence sees them [b t d], and how well every frame of the batch matches every sentence."""
        seen = self.look(tokens, video, sentence, words, word_mask, prior)
        return seen.frames, seen.match

    def look(
        self,
        tokens: Float[Tensor, "v t n c"],
        video: Int[Tensor, "b"],
        sentence: Float[Tensor, "b d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        prior: Float[Tensor, "b t p"] | None,
    ) -> Seen:
        """The forward itself, with all that its steps found on the way."""
        plain, patches = self.tokens(tokens)
        if self.where is None or self.where_gate is None:
            return Seen(plain[video], torch.einsum("vtd,bd->bvt", plain, sentence) / math.sqrt(plain.shape[-1]))
        where, what = self.where(patches, sentence, Asks.of(video), prior), None
        frames = plain[video] + self.where_gate(where.summary, where.share @ self.places)
        if self.what is not None and self.what_gate is not None:
            what = self.what(where.short_list, where.log_share, where.summary, words, word_mask)
            spots = torch.einsum("bhtk,btkw->bthw", what.attention, self.places[where.chosen]).flatten(2)
            frames = frames + self.what_gate(what.evidence, spots)
        return Seen(frames, where.match, where, what)


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

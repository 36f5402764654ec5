"""Looks inside the frames: which patches matter for a sentence (step one), and what its words find there (step two)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.contrast import Match, match_frames, match_texts
from costl.model.tokens import Asks, NormedTokens, Tokens, of_each, score_own


@dataclass(frozen=True)
class Where:
    """What step one found: the mean of the relevant patches (`summary`), every patch's `share` of it, the `short_list` of
    the best patches and which they are (`chosen`)."""

    summary: Float[Tensor, "b t c"]
    share: Float[Tensor, "b t p"]
    short_list: Float[Tensor, "b t k c"]
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
    """What the encoder made of a batch: `frames` as their sentence sees them, how well they `match` it (where that was asked),
    and what each step found, None for a step that this encoder does not have."""

    frames: Float[Tensor, "b t d"]
    match: Match | None
    where: Where | None = None
    what: What | None = None


class WhereStep(nn.Module):
    """Step one, coarse: the sentence scores every patch and keeps the `top_k` best.

    Cost is linear in the number of patches: one inner product each.
    """

    def __init__(self, *, top_k: int):
        super().__init__()
        self.top_k = top_k

    def forward(self, tokens: Tokens, asks: Asks, score: Float[Tensor, "b t p"]) -> Where:
        """Shares, their mean and the best; see `Where`."""
        share = score.softmax(-1)
        best = share.topk(min(self.top_k, share.shape[-1]), dim=-1).indices
        return Where(
            summary=asks.by_query(tokens.blended(asks.by_video(F.pad(share, (1, 0))))),
            share=share,
            short_list=tokens.patches(asks.video, best),
            chosen=best,
        )


class WhatStep(nn.Module):
    """Step two, fine: every word finds its own patches on the short list; heads listen to words by the part they play.

    A learned null patch lets a word say that it found nothing. Whom a head listens to depends on the words alone, not on
    the frame: so it follows one thing through the video, the subject of the sentence or its partner. Heads begin with
    different places in the sentence, from its first word to its last. Cost does not depend on the number of patches.
    """

    def __init__(self, *, clip_width: int, width: int, heads: int):
        super().__init__()
        self.null = nn.Linear(width, 1)
        self.part = nn.Linear(width, heads)
        self.order = nn.Parameter(torch.linspace(-5, 5, heads))
        self.value = nn.Parameter(torch.randn(heads, clip_width, width // heads) / math.sqrt(clip_width))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        short_list: Float[Tensor, "b t k c"],
        score: Float[Tensor, "b t l k"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
    ) -> What:
        """Evidence, and the attention that brought it; see `What`. `score`: each word with each patch of the short list."""
        null = (self.null(words) + math.log(2))[:, None].expand(-1, score.shape[1], -1, -1)
        by_word = torch.cat([score, null], -1).softmax(-1)
        part = self.part(words) + self.order * _standing(word_mask)[..., None]
        heard = part.masked_fill(~word_mask[..., None], -torch.inf).softmax(1).transpose(1, 2)
        attention = torch.einsum("bhl,btlk->bhtk", heard, by_word[..., :-1])
        gathered = torch.einsum("bhtk,btkc->bthc", attention, short_list)
        evidence = self.out(torch.einsum("bthc,hce->bthe", gathered, self.value).flatten(2))
        return What(evidence=evidence, attention=attention, by_word=by_word, heard=heard)


def _standing(word_mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Where each word stands in its sentence: -0.5 the first, 0.5 the last."""
    number = word_mask.cumsum(1) - 1
    return number / (word_mask.sum(1, keepdim=True) - 1).clamp(min=1) - 0.5


class SpatialEncoder(nn.Module):
    """Frame = frame token + gate(what step one found) + gate(what step two found).

    Texts go to the patches, not patches to the texts: carried into CLIP's own space, a text takes one inner product a
    patch, where a projection of every patch would take the model's width of them and find the same.

    Each step says what it found and where: the mean of the patches' places travels beside their contents. Added to the
    contents, as position embeddings are, it drowned: the sample world's 'on the left' was not learned at all.
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
        self.tokens = NormedTokens(dropout=dropout)
        self.project = nn.Linear(clip_width, width)
        self.places: Tensor
        places = place_waves(*patch_grid)
        self.register_buffer("places", places, persistent=False)
        self.to_clip = nn.Linear(width, clip_width, bias=False)
        nn.init.normal_(self.to_clip.weight, std=1 / math.sqrt(width * clip_width))
        self.ask_sentence = _telling(width)
        self.where = WhereStep(top_k=top_k) if steps >= 1 else None
        self.where_gate = _Gate(width=width, places=places.shape[1]) if steps >= 1 else None
        self.ask_words = _telling(width) if steps >= 2 else None
        self.what = WhatStep(clip_width=clip_width, width=width, heads=heads) if steps >= 2 else None
        self.what_gate = _Gate(width=width, places=heads * (places.shape[1] + 1)) if steps >= 2 else None

    def forward(
        self,
        tokens: Float[Tensor, "v t n c"],
        video: Int[Tensor, "b"],
        sentence: Float[Tensor, "b d"],
        words: Float[Tensor, "b l d"],
        word_mask: Bool[Tensor, "b l"],
        *,
        most_queries: int | None = None,
        real_words: int | None = None,
        matching: bool = True,
    ) -> Seen:
        """-> frames as their sentence sees them, with all that the steps found on the way."""
        normed = self.tokens(tokens)
        asks = Asks.of(video, len(tokens), most_queries)
        asked = self.texts(sentence, words)
        plain = normed.frames()
        frames = of_each(self.project(plain), video)
        if self.where is None or self.where_gate is None:
            return Seen(frames, match_frames(asked[:, 0], plain, video) if matching else None)
        match = match_texts(asked, word_mask, normed, asks, real_words) if matching else None
        where = self.where(normed, asks, score_own(asked[:, :1], normed, asks)[:, 0, :, 1:])
        frames = frames + self.where_gate(self.project(where.summary), where.share @ self.places)
        if self.what is None or self.what_gate is None:
            return Seen(frames, match, where)
        by_word = torch.einsum("btkc,blc->btlk", where.short_list, asked[:, 1:])
        what = self.what(where.short_list, by_word, words, word_mask)
        frames = frames + self.what_gate(what.evidence, self._spots(what, where).flatten(2))
        return Seen(frames, match, where, what)

    def texts(self, sentence: Float[Tensor, "b d"], words: Float[Tensor, "b l d"]) -> Float[Tensor, "b m c"]:
        """What patches are compared with: the sentence, and with step two each of its words."""
        asked = self.to_clip(self.ask_sentence(sentence))[:, None]
        return asked if self.ask_words is None else torch.cat([asked, self.to_clip(self.ask_words(words))], 1)

    def _spots(self, what: What, where: Where) -> Float[Tensor, "b t h w"]:
        """Where each head found what it found, and how sure it is that it found anything, from -1 to 1."""
        found = what.attention.sum(-1)
        place = torch.einsum("bhtk,btkw->bthw", what.attention / (found[..., None] + 1e-4), self.places[where.chosen])
        return torch.cat([place, 2 * found.transpose(1, 2)[..., None] - 1], -1)


def _telling(width: int) -> nn.Linear:
    """A map after which scores have a variance of about one from the start.

    With torch's own beginning it is 0.01: all patches are alike, and the first epochs go by until they are not.
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

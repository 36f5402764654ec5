"""Where the model looked: which patches step one chose for a sentence, and what each of its words found in step two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from costl.data.annotations import Query
from costl.data.batch import Batch, Features
from costl.model.build import Model
from costl.model.costl import CoSTL
from costl.model.spatial import Seen, What
from costl.pipeline.errors import UsageError
from costl.predict.predict import at_rest

# What CLIP's tokenizer takes for a word before it cuts long ones into pieces: letters, one digit, or other marks.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


@dataclass(frozen=True)
class Looks:
    """Where the model looked for one query: t clips of its video, p patches row by row, l words.

    `share`: step one's softmax over the patches of a frame, sums to 1. `chosen`: its short list, the k largest shares.
    `attention`: step two's attention of each word; zero beside the short list. What is missing
    to 1 over the patches went to the null patch and is `nothing`: the word found nothing. `heard`: how much each word
    had a say in what its frame became, the mean over the heads, sums to 1 over the words. Without step two there is no
    attention to show and l is 0 in the three; without step one p is 0 in all. `words` are named as far as they can be:
    pieces of a word end in a hyphen, and words of an old cache are numbered where the sentence cannot be split alike.
    """

    words: tuple[str, ...]
    share: Float[np.ndarray, "t p"]
    chosen: Bool[np.ndarray, "t p"]
    attention: Float[np.ndarray, "t l p"]
    nothing: Float[np.ndarray, "t l"]
    heard: Float[np.ndarray, "t l"]


def looks(model: Model, batch: Batch) -> list[Looks]:
    """One `Looks` for each of `batch.queries`, by the very computation that evaluation uses; the model stays as it was.

    Raises UsageError for a baseline, which has no maps to show.
    """
    model = _with_maps(model)
    with at_rest(model):
        seen = model.look(**batch.to(next(model.parameters()).device).model_inputs())
        counts = batch.word_mask.sum(1).tolist()
        return [
            _of_one(seen, row, clips=batch.clips[row], names=name_words(query.query, counts[row], batch.texts[row]))
            for row, query in enumerate(batch.queries)
        ]


def looks_at(model: Model, query: Query, clips: Sequence[int], features: Features) -> Looks:
    """The `Looks` of some clips of a query's video alone, in this order: however long the video, no more is read.

    What the steps see in a frame does not depend on the frames around it. Raises CacheError for what is not in the cache,
    UsageError for a baseline.
    """
    model = _with_maps(model)
    device, steps = next(model.parameters()).device, model.spatial.where is not None
    words = features.words(query.query)
    tokens = np.asarray(features.tokens(query.vid, clips=clips, patches=steps), np.float32)
    with at_rest(model):
        seen = model.look(
            tokens=torch.from_numpy(tokens)[None].to(device),
            frame_mask=torch.ones(1, len(clips), dtype=torch.bool, device=device),
            video=torch.zeros(1, dtype=torch.long, device=device),
            words=torch.from_numpy(words.tokens.astype(np.float32))[None].to(device),
            word_mask=torch.ones(1, len(words.tokens), dtype=torch.bool, device=device),
            sentence=torch.from_numpy(np.array(words.sentence))[None].to(device),
        )
        return _of_one(seen, 0, clips=len(clips), names=name_words(query.query, len(words.tokens), words.texts))


def has_maps(model: Model) -> bool:
    """Whether there is anything to show of where this model looked: baselines and a model without step one have none."""
    return isinstance(model, CoSTL) and model.spatial.where is not None


def name_words(sentence: str, count: int, texts: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names for the `count` word tokens of a sentence: `texts` of the cache, or the sentence split, or else numbers."""
    if texts:
        return tuple(text.strip() if text != text.rstrip() else f"{text}-" for text in texts)
    split = _WORD.findall(sentence.lower())
    return tuple(split) if len(split) == count else tuple(str(number + 1) for number in range(count))


def _with_maps(model: Model) -> CoSTL:
    if not isinstance(model, CoSTL):
        raise UsageError(
            "This model is a baseline: it has no maps of where it looked. Train one with model.kind=costl."
        )
    return model


def _of_one(seen: Seen, row: int, *, clips: int, names: tuple[str, ...]) -> Looks:
    share = torch.zeros(clips, 0)
    chosen = torch.zeros(clips, 0, dtype=torch.long)
    if seen.where is not None:
        share, chosen = seen.where.share[row, :clips].float().cpu(), seen.where.chosen[row, :clips].cpu()
    what = seen.what
    attention, nothing, heard = _no_words(clips) if what is None else _by_word(what, row, clips, len(names))
    return Looks(
        words=names,
        share=share.numpy(),
        chosen=torch.zeros(share.shape, dtype=torch.bool).scatter(1, chosen, True).numpy(),
        attention=_spread(attention, chosen, patches=share.shape[1]).numpy(),
        nothing=nothing.numpy(),
        heard=heard.numpy(),
    )


def _by_word(what: What, row: int, clips: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attention [t l k], the null patch [t l] and how much each word is heard [t l], the mean over the heads."""
    found = what.by_word[row, :clips, :words].float().cpu()
    heard = what.heard[row, :, :words].float().mean(0).cpu()
    return found[..., :-1], found[..., -1], heard.expand(clips, -1)


def _no_words(clips: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(clips, 0, 0), torch.zeros(clips, 0), torch.zeros(clips, 0)


def _spread(attention: Float[Tensor, "t l k"], chosen: Tensor, *, patches: int) -> Float[Tensor, "t l p"]:
    """From places on the short list to places in the frame."""
    spread = torch.zeros(*attention.shape[:2], patches)
    if not attention.numel():
        return spread
    return spread.scatter(2, chosen[:, None].expand(-1, attention.shape[1], -1), attention)

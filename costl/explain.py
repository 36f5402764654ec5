"""Where the model looked: which patches step one chose for a sentence, and what each of its words found in step two."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from costl.dataset import Batch
from costl.model.costl import CoSTL
from costl.model.spatial import Seen, What

# What CLIP's tokenizer takes for a word before it cuts long ones into pieces: letters, one digit, or other marks.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


@dataclass(frozen=True)
class Looks:
    """Where the model looked for one query: t clips of its video, p patches row by row, l words.

    `share`: step one's softmax over the patches of a frame, sums to 1. `chosen`: its short list, the k largest shares.
    `attention`: step two's attention of each word, the mean over its heads; zero beside the short list. What is missing
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


def looks(model: CoSTL, batch: Batch) -> list[Looks]:
    """One `Looks` for each of `batch.queries`, by the very computation that evaluation uses; the model stays as it was."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.inference_mode():
            seen = model.look(**batch.to(device).model_inputs())
            return [_of_one(seen, batch, row) for row in range(len(batch.queries))]
    finally:
        model.train(training)


def name_words(sentence: str, count: int, texts: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names for the `count` word tokens of a sentence: `texts` of the cache, or the sentence split, or else numbers."""
    if texts:
        return tuple(text.strip() if text != text.rstrip() else f"{text}-" for text in texts)
    split = _WORD.findall(sentence.lower())
    return tuple(split) if len(split) == count else tuple(str(number + 1) for number in range(count))


def _of_one(seen: Seen, batch: Batch, row: int) -> Looks:
    clips, words = batch.clips[row], int(batch.word_mask[row].sum())
    share = torch.zeros(clips, 0)
    chosen = torch.zeros(clips, 0, dtype=torch.long)
    if seen.where is not None:
        share, chosen = seen.where.share[row, :clips].float().cpu(), seen.where.chosen[row, :clips].cpu()
    attention, nothing, heard = _by_word(seen.what, row, clips, words) if seen.what is not None else _no_words(clips)
    return Looks(
        words=name_words(batch.queries[row].query, words, batch.texts[row]),
        share=share.numpy(),
        chosen=torch.zeros(share.shape, dtype=torch.bool).scatter(1, chosen, True).numpy(),
        attention=_spread(attention, chosen, patches=share.shape[1]).numpy(),
        nothing=nothing.numpy(),
        heard=heard.numpy(),
    )


def _by_word(what: What, row: int, clips: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attention [t l k], the null patch [t l] and how much each word is heard [t l]: means over the heads."""
    found = what.by_word[row, :, :clips, :words].float().mean(0).cpu()
    return found[..., :-1], found[..., -1], what.heard[row, :, :clips, :words].float().mean(0).cpu()


def _no_words(clips: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(clips, 0, 0), torch.zeros(clips, 0), torch.zeros(clips, 0)


def _spread(attention: Float[Tensor, "t l k"], chosen: Tensor, *, patches: int) -> Float[Tensor, "t l p"]:
    """From places on the short list to places in the frame."""
    spread = torch.zeros(*attention.shape[:2], patches)
    if not attention.numel():
        return spread
    return spread.scatter(2, chosen[:, None].expand(-1, attention.shape[1], -1), attention)

"""Attention maps of a model: of a sentence over the patches of each frame, and of each word over the short list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from costl.data.annotations import Query
from costl.data.batch import Features, model_inputs
from costl.deprecated import renamed_field
from costl.model.spatial import SpatialOutput
from costl.pipeline.errors import UsageError
from costl.predict.predict import evaluation_mode

# A word for CLIP's tokenizer, before it cuts long ones into pieces: letters, one digit, or other characters.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


@dataclass(frozen=True)
class AttentionMaps:
    """The attention maps of one query; patches are row by row.

    Coarse step: `share` is the softmax of the sentence over the patches of a frame and sums to 1; `short_list` marks the k
    patches with the largest shares. Fine step: `attention` is that of each word over the patches, zero outside the short
    list; the rest up to 1 is `null_attention`, which the word gave to the null patch. `word_weights` weight the words in
    the result for the frame, the mean over the heads, and sum to 1.

    Without the fine step, l is 0 in its three arrays. A word that is a piece of a longer one ends in a hyphen. The words of
    an old cache have numbers instead where they cannot be named.
    """

    words: tuple[str, ...]
    share: Float[np.ndarray, "t p"]
    short_list: Bool[np.ndarray, "t p"]
    attention: Float[np.ndarray, "t l p"]
    null_attention: Float[np.ndarray, "t l"]
    word_weights: Float[np.ndarray, "t l"]

    chosen = renamed_field("chosen", "short_list")
    nothing = renamed_field("nothing", "null_attention")
    heard = renamed_field("heard", "word_weights")


def clip_attention_maps(
    model: Any, query: Query, clips: slice | Sequence[int], features: Features
) -> AttentionMaps:
    """The maps of some `clips` of the query's video, in this order. Reads no other clips, however long the video is.

    The maps of a frame do not depend on other frames. They are computed by the same modules as in evaluation, and the model
    stays in the mode it is in. Raises CacheError for a query or a video that is not in the cache, UsageError for a model
    without maps.
    """
    if not model.has_attention_maps:
        raise UsageError("This model has no attention maps. Train one with model.kind=costl and spatial.steps 1 or 2.")
    inputs = model_inputs([query], features, patches=True, clips=clips)
    with evaluation_mode(model):
        output = model.spatial_output(inputs.to(next(model.parameters()).device))
    return _maps(output, name_words(query.query, inputs.real_words, features.words(query.query).texts))


def name_words(sentence: str, count: int, texts: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the `count` word tokens of a sentence: the `texts` of the cache, else the split sentence, else numbers."""
    if texts:
        return tuple(text.strip() if text != text.rstrip() else f"{text}-" for text in texts)
    words = _WORD.findall(sentence.lower())
    return tuple(words) if len(words) == count else tuple(str(number + 1) for number in range(count))


def _maps(output: SpatialOutput, words: tuple[str, ...]) -> AttentionMaps:
    """The maps of the first query of a batch."""
    coarse = output.coarse
    fine = output.fine
    assert coarse is not None, "the model has a coarse step"
    share = coarse.attention[0].float().cpu()
    short_list_index = coarse.short_list_index[0].cpu()
    clips, patches = share.shape
    attention = torch.zeros(clips, 0, patches)
    null_attention = torch.zeros(clips, 0)
    word_weights = torch.zeros(clips, 0)
    if fine is not None:
        with_null = fine.word_attention[0].float().cpu()
        index = short_list_index[:, None].expand(-1, len(words), -1)
        attention = torch.zeros(clips, len(words), patches).scatter(2, index, with_null[..., :-1])
        null_attention = with_null[..., -1]
        word_weights = fine.word_weights[0].float().mean(0).cpu().expand(clips, -1)
    return AttentionMaps(
        words=words,
        share=share.numpy(),
        short_list=torch.zeros(clips, patches, dtype=torch.bool).scatter(1, short_list_index, True).numpy(),
        attention=attention.numpy(),
        null_attention=null_attention.numpy(),
        word_weights=word_weights.numpy(),
    )

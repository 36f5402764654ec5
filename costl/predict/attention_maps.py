"""Attention maps of a model: of a sentence over the patches of each frame, and of each word over the short list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from costl.data.annotations import Query
from costl.data.batch import Batch, Features
from costl.deprecated import renamed_field
from costl.model.build import Model
from costl.model.costl import CoSTL
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

    Without the fine step l is 0 in its three arrays; without the coarse step p is 0 in all arrays. A word that is a piece
    of a longer one ends in a hyphen. The words of an old cache have numbers instead where they cannot be named.
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


def batch_attention_maps(model: Model, batch: Batch) -> list[AttentionMaps]:
    """The maps of each of `batch.queries`, computed by the same modules as in evaluation.

    The model stays in the mode it is in. Raises UsageError for a baseline, which has no maps.
    """
    model = _require_costl(model)
    with evaluation_mode(model):
        output = model.spatial_output(**batch.to(next(model.parameters()).device).model_inputs())
        word_counts = batch.word_mask.sum(1).tolist()
        maps = []
        for row, query in enumerate(batch.queries):
            words = name_words(query.query, word_counts[row], batch.texts[row])
            maps.append(_maps_of_row(output, row, clips=batch.clips[row], words=words))
        return maps


def clip_attention_maps(model: Model, query: Query, clips: Sequence[int], features: Features) -> AttentionMaps:
    """The maps of some `clips` of the query's video, in this order. Reads no other clips, however long the video is.

    The maps of a frame do not depend on other frames. Raises CacheError for a query or a video that is not in the cache,
    UsageError for a baseline.
    """
    model = _require_costl(model)
    device = next(model.parameters()).device
    words = features.words(query.query)
    tokens = np.asarray(features.tokens(query.vid, clips=clips, patches=has_attention_maps(model)), np.float32)
    with evaluation_mode(model):
        output = model.spatial_output(
            tokens=torch.from_numpy(tokens)[None].to(device),
            frame_mask=torch.ones(1, len(clips), dtype=torch.bool, device=device),
            video=torch.zeros(1, dtype=torch.long, device=device),
            words=torch.from_numpy(words.tokens.astype(np.float32))[None].to(device),
            word_mask=torch.ones(1, len(words.tokens), dtype=torch.bool, device=device),
            sentence=torch.from_numpy(np.array(words.sentence))[None].to(device),
        )
    names = name_words(query.query, len(words.tokens), words.texts)
    return _maps_of_row(output, 0, clips=len(clips), words=names)


def has_attention_maps(model: Model) -> bool:
    """Whether the model has maps: baselines and a model without the coarse step have none."""
    return isinstance(model, CoSTL) and model.spatial.coarse is not None


def name_words(sentence: str, count: int, texts: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the `count` word tokens of a sentence: the `texts` of the cache, else the split sentence, else numbers."""
    if texts:
        return tuple(text.strip() if text != text.rstrip() else f"{text}-" for text in texts)
    words = _WORD.findall(sentence.lower())
    return tuple(words) if len(words) == count else tuple(str(number + 1) for number in range(count))


def _require_costl(model: Model) -> CoSTL:
    if not isinstance(model, CoSTL):
        raise UsageError("This model is a baseline without attention maps. Train one with model.kind=costl.")
    return model


def _maps_of_row(output: SpatialOutput, row: int, *, clips: int, words: tuple[str, ...]) -> AttentionMaps:
    share = torch.zeros(clips, 0)
    short_list_index = torch.zeros(clips, 0, dtype=torch.long)
    if output.coarse is not None:
        share = output.coarse.attention[row, :clips].float().cpu()
        short_list_index = output.coarse.short_list_index[row, :clips].cpu()
    attention = torch.zeros(clips, 0, 0)
    null_attention = torch.zeros(clips, 0)
    word_weights = torch.zeros(clips, 0)
    if output.fine is not None:
        with_null = output.fine.word_attention[row, :clips, : len(words)].float().cpu()
        attention = with_null[..., :-1]
        null_attention = with_null[..., -1]
        mean_weights = output.fine.word_weights[row, :, : len(words)].float().mean(0).cpu()
        word_weights = mean_weights.expand(clips, -1)
    return AttentionMaps(
        words=words,
        share=share.numpy(),
        short_list=torch.zeros(share.shape, dtype=torch.bool).scatter(1, short_list_index, True).numpy(),
        attention=_scatter_to_patches(attention, short_list_index, patches=share.shape[1]).numpy(),
        null_attention=null_attention.numpy(),
        word_weights=word_weights.numpy(),
    )


def _scatter_to_patches(
    attention: Float[Tensor, "t l k"], short_list_index: Int[Tensor, "t _"], *, patches: int
) -> Float[Tensor, "t l p"]:
    """Attention over the short list -> attention over all patches of the frame."""
    scattered = torch.zeros(*attention.shape[:2], patches)
    if not attention.numel():
        return scattered
    return scattered.scatter(2, short_list_index[:, None].expand(-1, attention.shape[1], -1), attention)

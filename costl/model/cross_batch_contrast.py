"""Negatives across micro-batches: similarities of the queries of a whole batch with the videos of the last forward.

A forward compares its own queries with its own videos. The frames of the last forward are stored here, so that the
queries of other micro-batches are compared with them too, without reading the cache again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from costl.model.baselines.adapter import TEMPERATURE, AdapterModel
from costl.model.build import Model
from costl.model.contrast import frame_negatives, patch_negatives, unit_length
from costl.model.costl import CoSTL

Negatives = Callable[..., Float[Tensor, "a b v u"]]


def similarity_heads(model: Model) -> int:
    """The number of similarity heads of the model: axis `a` of `costl.model.contrast.Similarities`."""
    return 2 if isinstance(model, CoSTL) and model.spatial.fine is not None else 1


@contextmanager
def cross_batch_negatives(model: Model) -> Iterator[Negatives]:
    """A function `negatives(words, word_mask, sentence, real_words)` [a b v u], valid inside the `with` block.

    It returns what `Outputs.similarities.negatives` would be for these queries and the videos of the last forward.
    Without `real_words` the number is read from the device.
    """
    last_frames: list[Any] = []

    def store_frames(_module: nn.Module, _inputs: Any, output: Any) -> None:
        last_frames[:] = [output]

    frame_module = model.spatial.token_norm if isinstance(model, CoSTL) else model.token_mlp
    handle = frame_module.register_forward_hook(store_frames)
    try:
        yield lambda *texts: _negatives(model, last_frames[0], *texts)
    finally:
        handle.remove()


def _negatives(
    model: Model,
    frames: Any,
    words: Float[Tensor, "b l w"],
    word_mask: Bool[Tensor, "b l"],
    sentence: Float[Tensor, "b e"],
    real_words: int | None = None,
) -> Float[Tensor, "a b v u"]:
    if isinstance(model, AdapterModel):
        text = model.text_pool(model.word_mlp(model.word_projection(words)), word_mask)
        return frame_negatives(unit_length(text) / TEMPERATURE, unit_length(frames[:, :, 0]))
    sentence_features = model.sentence_projection(sentence)
    if not isinstance(model, CoSTL):
        return frame_negatives(sentence_features / math.sqrt(frames.shape[-1]), frames)
    texts = model.spatial.project_texts(sentence_features, model.word_projection(words))
    if model.spatial.coarse is None:
        return frame_negatives(texts[:, 0], frames.frame_tokens())
    return patch_negatives(texts, word_mask, frames, real_words)

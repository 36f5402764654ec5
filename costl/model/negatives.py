"""How well frames match sentences that nobody asked about their video: what contrast needs of a batch in several shares.

A forward compares its own sentences with its own videos. Here the frames that it has just made are kept, so that the
sentences of the other shares meet them too, for one product with each and without a second look at the cache.
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
from costl.model.contrast import frame_rivals, match_rivals, unit_length
from costl.model.costl import CoSTL

Rivals = Callable[..., Float[Tensor, "s b v u"]]


def ways(model: Model) -> int:
    """In how many ways the model compares frames with texts, `s` of `costl.model.contrast.Match`."""
    return 2 if isinstance(model, CoSTL) and model.spatial.what is not None else 1


@contextmanager
def rivals_of(model: Model) -> Iterator[Rivals]:
    """While inside, `rivals(words, word_mask, sentence, real_words)` [s b v u] is what `Outputs.match.rivals` would have been
    for these sentences and the videos of the last forward. Without `real_words` the device is asked for their number."""
    seen: list[Any] = []

    def keep(_module: nn.Module, _given: Any, made: Any) -> None:
        seen[:] = [made]

    handle = (model.spatial.tokens if isinstance(model, CoSTL) else model.tokens).register_forward_hook(keep)
    try:
        yield lambda *texts: _rivals(model, seen[0], *texts)
    finally:
        handle.remove()


def _rivals(
    model: Model,
    seen: Any,
    words: Float[Tensor, "b l w"],
    word_mask: Bool[Tensor, "b l"],
    sentence: Float[Tensor, "b e"],
    real_words: int | None = None,
) -> Float[Tensor, "s b v u"]:
    if isinstance(model, AdapterModel):
        text = model.text(model.word_mlp(model.words(words)), word_mask)
        return frame_rivals(unit_length(text) / TEMPERATURE, unit_length(seen[:, :, 0]))
    query = model.sentence(sentence)
    if not isinstance(model, CoSTL):
        return frame_rivals(query / math.sqrt(seen.shape[-1]), seen)
    asked = model.spatial.texts(query, model.words(words))
    if model.spatial.where is None:
        return frame_rivals(asked[:, 0], seen.frames())
    return match_rivals(asked, word_mask, seen, real_words)

"""How well frames match sentences that nobody asked about their video: what contrast needs of a batch in several shares.

A forward gives the match of its own sentences with its own videos. Here the frames that it has just made are kept, so that
the sentences of the other shares meet them too, for one product with each and without a second look at the patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.adapter import TEMPERATURE, AdapterModel
from costl.model.build import Model
from costl.model.costl import CoSTL

Match = Callable[[Float[Tensor, "b l w"], Bool[Tensor, "b l"], Float[Tensor, "b e"]], Float[Tensor, "b v t"]]


@contextmanager
def matching(model: Model) -> Iterator[Match]:
    """While inside, `match(words, word_mask, sentence)` [b v t] is what `Outputs.match` would have been for these
    sentences and the videos of the last forward."""
    seen: list[Any] = []

    def keep(_module: nn.Module, _given: Any, made: Any) -> None:
        seen[:] = [made]

    handle = _frames_of(model).register_forward_hook(keep)
    try:
        yield lambda words, word_mask, sentence: _match(model, seen[0], words, word_mask, sentence)
    finally:
        handle.remove()


def _frames_of(model: Model) -> nn.Module:
    """The part of the model whose output sentences are compared with."""
    if isinstance(model, CoSTL):
        return model.spatial.tokens if model.spatial.where is None else model.spatial.where.key
    return model.tokens


def _match(model: Model, seen: Any, words: Tensor, word_mask: Tensor, sentence: Tensor) -> Tensor:
    if isinstance(model, AdapterModel):
        text = model.text(model.word_mlp(model.words(words)), word_mask)
        frames = F.normalize(seen[:, :, 0], dim=-1)
        return torch.einsum("vtd,bd->bvt", frames, F.normalize(text, dim=-1)) / TEMPERATURE
    query = model.sentence(sentence)
    if isinstance(model, CoSTL) and model.spatial.where is not None:
        asked = model.spatial.where.query(query) / math.sqrt(seen.shape[-1])
        return torch.einsum("vtpd,bd->bvtp", seen, asked).logsumexp(-1)
    plain = seen[0] if isinstance(model, CoSTL) else seen
    return torch.einsum("vtd,bd->bvt", plain, query) / math.sqrt(plain.shape[-1])

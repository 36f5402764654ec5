"""The inputs of a model: the tokens of some videos, and sentences about them.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of every model; every mask is True where data is real.

    `joint` holds each frame in the encoder's joint space, of length one, or zero where that space is unknown. `video[b]` is
    the index of the video of query b. At most `most_queries` queries are about one video, and `real_words` words are not
    padding. Both are counted when the inputs are made, while the tensors are on the host: to read a number from a device,
    the host must wait for it.
    """

    tokens: Float[Tensor, "v t s c"]
    joint: Float[Tensor, "v t e"]
    frame_mask: Bool[Tensor, "v t"]
    video: Int[Tensor, "b"]
    words: Float[Tensor, "b l w"]
    word_mask: Bool[Tensor, "b l"]
    sentence: Float[Tensor, "b e"]
    most_queries: int = 0
    real_words: int = 0

    def __post_init__(self) -> None:
        if not self.most_queries:
            object.__setattr__(self, "most_queries", int(self.video.bincount().max()))
            object.__setattr__(self, "real_words", int(self.word_mask.sum()))

    def to(self, device: torch.device) -> ModelInputs:
        """The same inputs with their tensors on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))


def map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """A copy of a dataclass, with `change` applied to each of its tensors, and to those of the dataclasses in it."""
    changed: dict[str, Any] = {}
    for field in fields(value):  # type: ignore[arg-type]
        inner = getattr(value, field.name)
        if isinstance(inner, Tensor):
            changed[field.name] = change(inner)
        elif is_dataclass(inner):
            changed[field.name] = map_tensors(inner, change)
    return replace(value, **changed)  # type: ignore[type-var]

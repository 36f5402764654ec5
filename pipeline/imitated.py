"""A stand-in for CLIP on an accelerator: it takes time and no CPU, so that a machine without one can show the overlap."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.clip import Clip


class Imitated:
    """What extraction asks of a `pipeline.clip.Clip`, without a network: n frames take n / `rate` seconds.

    Its tokens are noise in the shape of `like`'s. It measures how decoding, encoding and writing overlap, nothing else.
    """

    name = "imitated accelerator (sleeps, no network)"
    precision = "fp32"

    def __init__(self, like: Clip, *, rate: float):
        self.rate, self._busy_until_s = rate, 0.0
        self.device = torch.device("cpu")
        self.patch_grid, self.joint, self.width = like.patch_grid, like.joint, like.width
        rows, columns = like.patch_grid
        shape = (1 + rows * columns, like.width)
        self._tokens = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    def fingerprint(self) -> dict[str, str]:
        """Its name and rate: a cache of it is never mixed with another."""
        return {"model": self.name, "rate": repr(self.rate)}

    def prepare(self, pixels: np.ndarray | Tensor) -> Float[Tensor, "n 3 y x"]:
        """Copies the frames once, as on the way to a device, and forgets them: that device would do the resize."""
        return torch.zeros(len(np.array(pixels)), 3, 1, 1)

    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], np.ndarray]:
        """Begins a batch: it is done n / rate seconds after the one before it, or after now."""
        done_s = self._busy_until_s = max(self._busy_until_s, time.monotonic()) + len(images) / self.rate

        def finish() -> np.ndarray:
            time.sleep(max(0.0, done_s - time.monotonic()))
            return np.repeat(self._tokens[None], len(images), axis=0)

        return finish

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> np.ndarray:
        """n / rate seconds later, float16 [n 1+p c]."""
        return self.start(images)()

    def tokens(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """Both steps at once."""
        return self.encode_images(self.prepare(pixels))


def as_clip(imitated: Imitated) -> Clip:
    """For signatures that name the class: an `Imitated` stands wherever extraction takes a Clip."""
    stand_in: Any = imitated
    return stand_in  # type: ignore[no-any-return]

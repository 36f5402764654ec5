"""A stand-in for CLIP on an accelerator: it sleeps for as long as the accelerator would compute, and needs no CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from costl.pipeline.encode.clip import CLIPEncoder


class ImitatedAccelerator:
    """Has the methods of `CLIPEncoder` that extraction calls, but no network: `b` frames take `b / rate` seconds.

    Its tokens are noise in the shape of those of `like`. It measures how decoding, encoding and writing overlap.
    """

    name = "imitated accelerator (sleeps, no network)"
    precision = "fp32"

    def __init__(self, like: CLIPEncoder, *, rate: float):
        self.rate = rate
        self._busy_until_s = 0.0
        self.device = torch.device("cpu")
        self.patch_grid = like.patch_grid
        self.joint = like.joint
        self.width = like.width
        rows, columns = like.patch_grid
        shape = (1 + rows * columns, like.width)
        self._tokens = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    def fingerprint(self) -> dict[str, str]:
        """Name and rate, so that its cache is never mixed with another one."""
        return {"model": self.name, "rate": repr(self.rate)}

    def prepare(self, pixels: np.ndarray | Tensor) -> Float[Tensor, "b 3 y x"]:
        """Copies the frames once, as to a device, and drops them. A device would resize them without the CPU."""
        return torch.zeros(len(np.array(pixels)), 3, 1, 1)

    def start(self, images: Float[Tensor, "b 3 y x"]) -> Callable[[], np.ndarray]:
        """Starts a batch. It ends `b / rate` seconds after the batch before it, or from now if there is none.

        Call the returned function to wait for its tokens, float16 [b 1+p c].
        """
        end_s = max(self._busy_until_s, time.monotonic()) + len(images) / self.rate
        self._busy_until_s = end_s

        def finish() -> np.ndarray:
            time.sleep(max(0.0, end_s - time.monotonic()))
            return np.repeat(self._tokens[None], len(images), axis=0)

        return finish

    def encode_images(self, images: Float[Tensor, "b 3 y x"]) -> np.ndarray:
        """Float16 [b 1+p c], after `b / rate` seconds."""
        return self.start(images)()

    def tokens(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """Prepares and encodes frames [b y x 3]: float16 [b 1+p c]."""
        return self.encode_images(self.prepare(pixels))


def as_encoder(accelerator: ImitatedAccelerator) -> CLIPEncoder:
    """The same object with the type that extraction expects."""
    encoder: Any = accelerator
    return encoder  # type: ignore[no-any-return]

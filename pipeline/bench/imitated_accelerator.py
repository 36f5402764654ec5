"""A stand-in for CLIP on an accelerator: it sleeps for as long as the accelerator would compute, and needs no CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.encode.types import FrameFeatures


class ImitatedAccelerator(CLIPEncoder):
    """Takes `b / rate` seconds for `b` frames, without a network, so that decoding has the CPU.

    Its tokens are random numbers in the shape of those of `like`. It measures how decoding, encoding and writing overlap.
    """

    def __init__(self, like: CLIPEncoder, *, rate: float):
        vars(self).update(vars(like))
        self._rate = rate
        self._busy_until_s = 0.0
        rows, columns = like.patch_grid
        self._joint = np.full(like.joint.width, like.joint.width**-0.5, np.float16)
        self._tokens = np.random.default_rng(0).normal(size=(1 + rows * columns, like.width)).astype(np.float16)

    def prepare(self, pixels: np.ndarray | Tensor) -> Float[Tensor, "n 3 y x"]:
        """Copies the frames once, as to a device, and drops them. A device would resize them without the CPU."""
        return torch.zeros(len(np.array(pixels)), 3, 1, 1)

    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], FrameFeatures]:
        """Starts a batch. It ends `n / rate` seconds after the batch before it, or from now if there is none.

        Call the returned function to wait for its features.
        """
        end_s = max(self._busy_until_s, time.monotonic()) + len(images) / self._rate
        self._busy_until_s = end_s

        def finish() -> FrameFeatures:
            time.sleep(max(0.0, end_s - time.monotonic()))
            return FrameFeatures(*(np.repeat(value[None], len(images), axis=0) for value in (self._tokens, self._joint)))

        return finish

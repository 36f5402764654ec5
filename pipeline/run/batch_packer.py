"""Runs of frames from many videos, packed into encoder batches of one size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class FrameRun:
    """Frames `first_index`, `first_index + 1`, ... of one video's grid: `times_s` [n], and `values` [n ...] of them.

    `values` are images on a device before they are encoded, and tokens afterwards.
    """

    video_id: str
    first_index: int
    times_s: np.ndarray
    values: Any

    def __len__(self) -> int:
        return len(self.times_s)

    def __getitem__(self, part: slice) -> FrameRun:
        begin = part.indices(len(self))[0]
        return replace(self, first_index=self.first_index + begin, times_s=self.times_s[part], values=self.values[part])


class BatchPacker:
    """Collects prepared frames into batches of exactly `batch`, whatever videos they come from.

    The last batch is padded: a token must not depend on which videos happened to be decoded together, and equal shapes
    take equal paths through the device's kernels. The packer never holds more than one batch and the last run added.
    """

    def __init__(self, *, batch: int):
        self.batch = batch
        self._waiting: deque[FrameRun] = deque()

    def add(self, frame_run: FrameRun) -> None:
        """Adds frames whose `values` are images [n 3 y x] on the device."""
        self._waiting.append(frame_run)

    def put_back(self, frame_runs: Sequence[FrameRun]) -> None:
        """Puts the batch that was taken last back, to be packed again with a smaller `batch`."""
        self._waiting.extendleft(reversed(frame_runs))

    def full_batches(self) -> Iterator[list[FrameRun]]:
        """Every batch that is full, in the order added."""
        while sum(map(len, self._waiting)) >= self.batch:
            yield self._take()

    def remaining_batches(self) -> Iterator[list[FrameRun]]:
        """All frames that are left, the last batch possibly short."""
        while self._waiting:
            yield self._take()

    def stack_images(self, frame_runs: Sequence[FrameRun]) -> Float[Tensor, "n 3 y x"]:
        """The images of one batch, padded with zeros to `batch`."""
        images = torch.cat([frame_run.values for frame_run in frame_runs])
        missing = self.batch - len(images)
        if not missing:
            return images
        padding = images.new_zeros(missing, *images.shape[1:])
        return torch.cat([images, padding])

    def _take(self) -> list[FrameRun]:
        taken: list[FrameRun] = []
        free = self.batch
        while self._waiting and free:
            frame_run = self._waiting.popleft()
            taken.append(frame_run[:free])
            if len(frame_run) > free:
                self._waiting.appendleft(frame_run[free:])
            free -= len(taken[-1])
        return taken


def with_tokens(frame_runs: Sequence[FrameRun], tokens: np.ndarray) -> list[FrameRun]:
    """The runs of a batch with their tokens [n ...] in place of their images; tokens of padding are dropped."""
    encoded: list[FrameRun] = []
    begin = 0
    for frame_run in frame_runs:
        end = begin + len(frame_run)
        encoded.append(replace(frame_run, values=tokens[begin:end]))
        begin = end
    return encoded

"""Frames of many videos, packed into batches of one size; the tokens of each video gathered again."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.hdf5 import unwritable


class Packer:
    """Collects prepared frames and encodes them `batch` at a time, whatever videos they come from.

    Every call of `encode` gets exactly `batch` frames, the last one padded: a token must not depend on which videos
    happened to be decoded together, and equal shapes take equal paths through the device's kernels.
    """

    def __init__(self, encode: Callable[[Tensor], np.ndarray], *, batch: int):
        self._encode, self._batch = encode, batch
        self._waiting: deque[tuple[str, Tensor]] = deque()

    def add(self, video_id: str, images: Float[Tensor, "n 3 y x"]) -> Iterator[tuple[str, np.ndarray]]:
        """Takes frames; gives (video id, tokens float16 [n 1+p c]) of all that fills a batch, in the order added."""
        self._waiting.append((video_id, images))
        while sum(len(images) for _, images in self._waiting) >= self._batch:
            yield from self._run()

    def drop(self, video_id: str) -> None:
        """Forgets the frames of a video that are still waiting."""
        self._waiting = deque((owner, images) for owner, images in self._waiting if owner != video_id)

    def flush(self) -> Iterator[tuple[str, np.ndarray]]:
        """Encodes what is left."""
        while self._waiting:
            yield from self._run()

    def _run(self) -> Iterator[tuple[str, np.ndarray]]:
        taken, room = [], self._batch
        while self._waiting and room:
            owner, images = self._waiting.popleft()
            taken.append((owner, images[:room]))
            if len(images) > room:
                self._waiting.appendleft((owner, images[room:]))
            room -= len(taken[-1][1])
        images = torch.cat([images for _, images in taken])
        tokens = self._encode(torch.cat([images, images.new_zeros(room, *images.shape[1:])]))
        start = 0
        for owner, images in taken:
            yield owner, tokens[start : start + len(images)]
            start += len(images)


class Gathered:
    """The tokens of one video as they come, kept in a nameless file: memory does not grow with the video's length.

    Raises CacheError when the disk of `folder` takes no more.
    """

    def __init__(self, folder: Path):
        with _on_disk(folder):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._folder = folder
        self._shape: tuple[int, ...] = ()
        self._times_s: list[np.ndarray] = []
        self.frames = 0

    def add_times(self, times_s: np.ndarray) -> None:
        """When the next frames were on screen, seconds [n]."""
        self._times_s.append(np.array(times_s, dtype=np.float64))

    def add_tokens(self, tokens: np.ndarray) -> None:
        """The next frames' tokens, float16 [n 1+p c]."""
        with _on_disk(self._folder):
            self._file.write(np.ascontiguousarray(tokens).data)
        self._shape, self.frames = tokens.shape[1:], self.frames + len(tokens)

    def tokens(self) -> np.ndarray:
        """All tokens so far, float16 [t 1+p c], valid until `close`."""
        with _on_disk(self._folder):
            self._file.flush()
        return np.memmap(self._file, dtype=np.float16, mode="r", shape=(self.frames, *self._shape))

    def times_s(self) -> np.ndarray:
        """All times so far, float64 [t]."""
        return np.concatenate(self._times_s)

    def close(self) -> None:
        """Frees the file."""
        self._file.close()


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error

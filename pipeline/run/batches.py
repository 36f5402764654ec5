"""Frames of many videos, packed into batches of one size; the tokens of each video gathered again."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from costl.pipeline.cache.hdf5 import unwritable


@dataclass(frozen=True)
class Stretch:
    """Frames `first_index`, `first_index + 1`, ... of one video's grid: `times_s` [n], and `values` [n ...] of them.

    `values` are pictures on a device before they are encoded, and tokens afterwards.
    """

    video_id: str
    first_index: int
    times_s: np.ndarray
    values: Any

    def __len__(self) -> int:
        return len(self.times_s)

    def __getitem__(self, part: slice) -> Stretch:
        begin = part.indices(len(self))[0]
        return replace(self, first_index=self.first_index + begin, times_s=self.times_s[part], values=self.values[part])


class Packer:
    """Collects prepared frames into batches of exactly `batch`, whatever videos they come from.

    The last batch is padded: a token must not depend on which videos happened to be decoded together, and equal shapes
    take equal paths through the device's kernels. It never holds more than a batch and what was added last.
    """

    def __init__(self, *, batch: int):
        self.batch = batch
        self._waiting: deque[Stretch] = deque()

    def add(self, stretch: Stretch) -> None:
        """Takes frames, their `values` [n 3 y x] on the device."""
        self._waiting.append(stretch)

    def put_back(self, stretches: Sequence[Stretch]) -> None:
        """Takes a batch back that was given last, for a smaller `batch`."""
        self._waiting.extendleft(reversed(stretches))

    def full(self) -> Iterator[list[Stretch]]:
        """Every batch that is full, in the order added."""
        while sum(map(len, self._waiting)) >= self.batch:
            yield self._take()

    def rest(self) -> Iterator[list[Stretch]]:
        """All that is left."""
        while self._waiting:
            yield self._take()

    def images(self, stretches: Sequence[Stretch]) -> Float[Tensor, "n 3 y x"]:
        """The frames of one batch, filled up to its size."""
        images = torch.cat([stretch.values for stretch in stretches])
        missing = self.batch - len(images)
        return torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images

    def _take(self) -> list[Stretch]:
        taken, room = [], self.batch
        while self._waiting and room:
            stretch = self._waiting.popleft()
            taken.append(stretch[:room])
            if len(stretch) > room:
                self._waiting.appendleft(stretch[room:])
            room -= len(taken[-1])
        return taken


def with_tokens(stretches: Sequence[Stretch], tokens: np.ndarray) -> list[Stretch]:
    """The stretches of a batch with their tokens [n ...] in the place of their pictures."""
    ends = np.cumsum([len(stretch) for stretch in stretches]).tolist()
    return [
        replace(stretch, values=tokens[end - len(stretch) : end]) for stretch, end in zip(stretches, ends, strict=True)
    ]


class Gathered:
    """The tokens of one video as they come, in any order, kept in a nameless file: memory does not grow with the length.

    Raises CacheError when the disk of `folder` takes no more.
    """

    def __init__(self, folder: Path):
        with _on_disk(folder):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by `close`)
        self._folder = folder
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.float16)
        self._times_s: dict[int, np.ndarray] = {}
        self.frames = 0

    def add(self, stretch: Stretch) -> None:
        """The tokens of some frames, [n ...], and when these were on screen."""
        tokens = np.ascontiguousarray(stretch.values)
        self._shape, self._dtype = tokens.shape[1:], tokens.dtype
        with _on_disk(self._folder):
            self._file.seek(stretch.first_index * tokens[0].nbytes)
            self._file.write(tokens.data)
        self._times_s[stretch.first_index] = np.array(stretch.times_s, dtype=np.float64)
        self.frames += len(stretch)

    def tokens(self) -> np.ndarray:
        """All tokens, [t ...], valid until `close`."""
        with _on_disk(self._folder):
            self._file.flush()
        return np.memmap(self._file, dtype=self._dtype, mode="r", shape=(self.frames, *self._shape))

    def times_s(self) -> np.ndarray:
        """All times, float64 [t]."""
        return np.concatenate([times_s for _, times_s in sorted(self._times_s.items())])

    def close(self) -> None:
        """Frees the file."""
        self._file.close()


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error

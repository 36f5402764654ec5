"""The search file of a library: the joint vectors of all its clips in one flat file, which is mapped into memory.

FOLDER/vectors.table       which video is at which rows (see `vectors_table`)
FOLDER/vectors-<id>.f16    a header of 64 bytes, then float16 [rows e]

It is derived from a cache and can be thrown away at any time: `vectors_update.update_vectors` makes it again. Rows are only
appended. A table is published after the rows that it names are on the disk, so a crash leaves the old table or the new one,
and a reader of the old one is never disturbed. A file that is written anew has another name.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from costl.pipeline.errors import CacheError, next_step
from costl.pipeline.library.vectors_table import NEXT_STEP, VectorsTable, read_table

HEADER_BYTES = 64
_TRIES = 5


@dataclass(frozen=True)
class Vectors:
    """The joint vectors of the videos of a library; n clips of e numbers, of length one.

    `array`: the file, read-only float16 [rows e]. It also holds rows of videos that are gone, so read it by `of` and by
    `scan.similarities`. `keys`: the names of the videos in the cache. `rows`: the first row of each in `array`, int64 [v].
    `clips`: how many it has, int64 [v]. `durations_s`: float64 [v]. `fps`: clips a second. `unreadable`: the reason for
    each video whose part in the cache could not be read by the update; it is not among `keys`. `path`: that of the file,
    None for an array in memory.
    """

    array: np.ndarray
    keys: tuple[str, ...]
    rows: np.ndarray
    clips: np.ndarray
    durations_s: np.ndarray
    fps: float
    unreadable: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    @property
    def width(self) -> int:
        """e, the numbers of a vector."""
        return int(self.array.shape[1])

    @cached_property
    def total_clips(self) -> int:
        """n, the clips of all videos."""
        return int(self.clips.sum())

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each video's first clip among all n clips, int64 [v]: the order of `scan.similarities`."""
        return np.cumsum(self.clips) - self.clips

    def of(self, index: int) -> np.ndarray:
        """The vectors of the video `keys[index]`, a read-only float16 [t e]."""
        row = self.rows[index]
        return self.array[row : row + self.clips[index]]

    def select(self, indices: Sequence[int] | np.ndarray) -> Vectors:
        """Only the videos of these indices, in this order."""
        chosen = np.asarray(indices, np.int64)
        keys = tuple(self.keys[index] for index in chosen)
        columns = {name: getattr(self, name)[chosen] for name in ("rows", "clips", "durations_s")}
        return replace(self, keys=keys, **columns)


def open_vectors(folder: Path) -> Vectors:
    """The search file in `folder`, mapped into memory. Raises CacheError when it is missing, damaged or foreign.

    Damage is noticed in the table, in the header and by the size. `verify_vectors` reads everything.
    """
    table, array = open_table(folder)
    return Vectors(array, table.keys, table.rows, table.clips, table.durations_s, table.fps, path=folder / table.data)


def verify_vectors(folder: Path) -> None:
    """Reads the whole search file. Raises CacheError naming the first video whose vectors have changed."""
    table, _ = open_table(folder)
    vectors = open_vectors(folder)
    for index, crc in enumerate(table.crcs):
        if checksum(vectors.of(index)) != crc:
            name = table.keys[index]
            raise CacheError(f"{folder / table.data}: the vectors of {name!r} have changed since they were written. {NEXT_STEP}")


def open_table(folder: Path) -> tuple[VectorsTable, np.ndarray]:
    """The table in `folder` and the rows that it names, float16 [rows e]. Raises CacheError as `open_vectors` does."""
    table = read_table(folder)
    for _ in range(_TRIES):
        try:
            return table, map_rows(folder / table.data, rows=table.written_rows, width=table.width)
        except CacheError:
            # An update may have published another table and removed this file in between.
            newer = read_table(folder)
            if newer.data == table.data:
                raise
            table = newer
    raise CacheError(f"{folder}: its files are replaced faster than they can be opened. Try again.")


def checksum(vectors: np.ndarray) -> int:
    """The CRC-32 of vectors, float16 [t e]."""
    return zlib.crc32(np.ascontiguousarray(vectors, "<f2").data)


def header(name: str, width: int) -> bytes:
    """The first 64 bytes of the data file of this name."""
    return f"CoSTL vectors 1 {name} {width}\n".encode().ljust(HEADER_BYTES, b"\0")


def map_rows(path: Path, *, rows: int, width: int, remedy: str | None = None) -> np.ndarray:
    """The first rows of a data file, mapped into memory, read-only float16 [rows width]. A name stands for one content.

    Raises CacheError, which ends with `remedy`, for a file that cannot be read, has another name inside, or has fewer rows.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(HEADER_BYTES)
            size = file.seek(0, 2)
        if begin != header(path.name, width) or size < HEADER_BYTES + 2 * rows * width:
            raise CacheError(f"{path}: damaged or foreign ({size} bytes, expected {rows} vectors). {remedy or NEXT_STEP}")
        if not rows:
            return np.empty((rows, width), "<f2")
        # A view: slicing a memmap is many times as slow.
        return np.asarray(np.memmap(path, "<f2", "r", offset=HEADER_BYTES, shape=(rows, width)))
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). {remedy or next_step(error)}") from error

"""The table of a packed file: where each file is inside it. A line is read when it is needed, and checked before its use.

packed/table        uint8 [n], one JSON line a packed file, in the order of the rows with features, the words last
packed/ends         int64 [files], the end of each of these lines
packed/parts/ID/    the arrays and attributes of the part ID.h5
packed/shells/ID    uint8 [n], its shell: every other byte of that file, with which it can be restored exactly
packed/words/, packed/words_shell    the same for the file with the words
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.errors import CacheError

GROUP, TABLE, ENDS = "packed", "packed/table", "packed/ends"
NEXT_STEP = "Copy it anew from where it was packed, or pack it again."
_BLOCK_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 20


class ByteRange(NamedTuple):
    """`length` bytes at `file_offset` in the original file and at `packed_offset` in the packed one."""

    file_offset: int
    packed_offset: int
    length: int


@dataclass(frozen=True)
class Entry:
    """One file inside a packed one: its `name` in the folder of parts, and its bytes.

    `ranges`: every byte of it in order. `shell`: the ranges that belong to no array, and `shell_sha256` the hash of their
    bytes (the checksum in a row covers the arrays).
    """

    name: str
    ranges: tuple[ByteRange, ...]
    shell: tuple[ByteRange, ...]
    shell_sha256: str

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return sum(part.length for part in self.ranges)


@dataclass(frozen=True)
class PackTable:
    """The table of the packed file at `path`; `entry` reads one line of it."""

    path: Path
    lines: hdf5.Location
    ends: np.ndarray
    number: Mapping[str, int]

    def entry(self, name: str) -> Entry:
        """The file of this name, such as `ID.h5`. Raises CacheError when its line or its arrays are damaged."""
        i = self.number[name]
        start = int(self.ends[i - 1]) if i else 0
        line = bytes(self.lines.array()[start : int(self.ends[i])])
        group, shell_path = packed_names(name)
        with hdf5.open_file(self.path) as file:
            arrays = hdf5.locate_arrays(hdf5.get_group(file, group))
            shell = hdf5.locate_array(file, shell_path, "|u1", ndim=1)
        try:
            values = json.loads(line)
            if values["name"] != name:
                raise ValueError(f"names {str(values['name'])[:80]!r}")
            # A line also holds the type, shape and position of each array, which HDF5 knows as well.
            array_ranges = [
                ByteRange(_whole_number(values["arrays"][label][2]), array.offset, array.size)
                for label, array in arrays.items()
            ]
            size = shell.size + sum(array.size for array in arrays.values())
            ranges, shell_ranges = split_into_ranges(size, array_ranges, shell.offset)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise CacheError(
                f"{self.path}: its table is damaged at {name!r} ({str(error)[:160]}). Pack it again."
            ) from error
        return Entry(name, ranges, shell_ranges, str(values.get("shell_sha256")))

    def entries(self) -> Iterator[Entry]:
        """Every file, in order."""
        return map(self.entry, self.number)


def read_table(file: Any, names: Sequence[str]) -> PackTable | None:
    """The table of an open index, which should hold files of these names; None for a cache that is not packed.

    Raises CacheError for a table with another number of files, or with lines that do not fit its size.
    """
    if not hdf5.has_name(file, GROUP):
        return None
    lines = hdf5.locate_array(file, TABLE, "|u1", ndim=1)
    ends = hdf5.get_array(file, ENDS, "<i8", ndim=1)
    lengths = np.diff(ends, prepend=0)
    fits = len(ends) == len(names) and (lengths > 0).all() and (lengths < _MAX_LINE_BYTES).all()
    if not fits or int(ends[-1]) != lines.size:
        raise CacheError(f"{lines.path}: a table of {len(ends)} files that does not fit {len(names)}. Pack it again.")
    return PackTable(lines.path, lines, ends, {name: i for i, name in enumerate(names)})


def hash_ranges(path: Path, ranges: Sequence[ByteRange], *, packed: bool = False) -> str:
    """sha256 over these ranges, in this order, of the original file at `path`, or of the `packed` one."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        for part in ranges:
            for block in read_blocks(file, part.packed_offset if packed else part.file_offset, part.length):
                hasher.update(block)
    return hasher.hexdigest()


def read_blocks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """`length` bytes from `start` on, a block at a time. Raises CacheError when the file ends before."""
    file.seek(start)
    while length:
        block = file.read(min(length, _BLOCK_BYTES))
        if not block:
            raise CacheError(f"{file.name}: became shorter while it was read. Start again.")
        length -= len(block)
        yield block


def packed_names(name: str) -> tuple[str, str]:
    """The names of a file's group of arrays and of its shell in the packed file."""
    if name.startswith("words/"):
        return f"{GROUP}/words", f"{GROUP}/words_shell"
    video_id = name.removesuffix(".h5")
    return f"{GROUP}/parts/{video_id}", f"{GROUP}/shells/{video_id}"


def split_into_ranges(
    size: int, arrays: Sequence[ByteRange], shell_offset: int
) -> tuple[tuple[ByteRange, ...], tuple[ByteRange, ...]]:
    """(every byte of a file of `size` bytes in order, its shell); the shell is contiguous in the packed file.

    `shell_offset` is where the shell begins there. Raises ValueError when arrays overlap or lie outside of the file.
    """
    ranges: list[ByteRange] = []
    shell: list[ByteRange] = []
    position = 0
    end = ByteRange(size, 0, 0)
    for array in [*sorted(array for array in arrays if array.length), end]:
        gap = array.file_offset - position
        if gap < 0:
            raise ValueError("arrays that overlap or lie outside the file")
        if gap:
            shell.append(ByteRange(position, shell_offset, gap))
            ranges.append(shell[-1])
            shell_offset += gap
        if array.length:
            ranges.append(array)
        position = array.file_offset + array.length
    return tuple(ranges), tuple(shell)


def _whole_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]!r}, expected a whole number")
    return value

"""What lies where inside a packed file: its table, read a line at a time and checked before a byte of it is believed.

packed/table        uint8 [n], one JSON line a file that was packed, in the order of the rows with features, the words last
packed/ends         int64 [files], where each of these lines ends
packed/parts/ID/    the arrays and attributes of the part ID.h5
packed/shells/ID    uint8 [n], every other byte of that file, so that it can be put together again as it was
packed/words/, packed/words_shell    the same of the file with the words
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.errors import CacheError

GROUP, TABLE, ENDS = "packed", "packed/table", "packed/ends"
NEXT_STEP = "Copy it anew from where it was packed, or pack it again."
_BLOCK = 4 << 20
_LONGEST_LINE = 1 << 20
_DTYPE = re.compile(r"[<|][biufS][1-9]\d{0,8}")


class Piece(NamedTuple):
    """`length` bytes that lie at `at` in the packed file and at `start` in the file that was packed."""

    start: int
    at: int
    length: int


@dataclass(frozen=True)
class Entry:
    """One file inside a packed one: `name` as it is called in the folder of parts, `size` in bytes.

    `listed` its arrays and attributes; `pieces` every byte of it in order; `shell` the pieces that belong to no array, and
    `shell_sha256` the hash of what they hold (arrays have a checksum in their row).
    """

    name: str
    size: int
    listed: hdf5.Listed
    pieces: tuple[Piece, ...]
    shell: tuple[Piece, ...]
    shell_sha256: str


@dataclass(frozen=True)
class Table:
    """The table of the packed file at `path`; nothing of it is read before a file is asked for."""

    path: Path
    lines: hdf5.Location
    ends: np.ndarray
    number: Mapping[str, int] = field(repr=False)

    def entry(self, name: str) -> Entry:
        """The file of this name, such as `ID.h5`. Raises CacheError when its line makes no sense."""
        i = self.number[name]
        start, end = int(self.ends[i - 1]) if i else 0, int(self.ends[i])
        line = bytes(self.lines.array()[start:end])
        try:
            found = json.loads(line)
            if found["name"] != name:
                raise ValueError(f"speaks of {str(found['name'])[:80]!r}")
            return _entry(self.path, found)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise CacheError(
                f"{self.path}: its table is damaged at {name!r} ({str(error)[:160]}). Pack it again."
            ) from error

    def entries(self) -> Iterator[Entry]:
        """Every file, in order."""
        return map(self.entry, self.number)


def read_table(file: Any, names: Sequence[str]) -> Table | None:
    """The table of an open index that should hold files of these names; None where the parts lie beside it.

    Raises CacheError for a table of other sizes.
    """
    if not hdf5.has(file, GROUP):
        return None
    lines = hdf5.locate_array(file, TABLE, "|u1", ndim=1)
    ends = hdf5.get_array(file, ENDS, "<i8", ndim=1)
    lengths = np.diff(ends, prepend=0)
    fits = len(ends) == len(names) and (lengths > 0).all() and (lengths < _LONGEST_LINE).all()
    if not fits or int(ends[-1]) != lines.size:
        raise CacheError(f"{lines.path}: a table of {len(ends)} files that does not fit {len(names)}. Pack it again.")
    return Table(lines.path, lines, ends, {name: i for i, name in enumerate(names)})


def check_entry(path: Path, entry: Entry) -> None:
    """Raises CacheError unless HDF5 finds the arrays of a file where the table says, and its shell is as it was packed."""
    where, _ = places_of(entry.name)
    with hdf5.reading(path) as file:
        if hdf5.arrays_in(hdf5.group_in(file, where)) != entry.listed.arrays:
            raise CacheError(f"{path}: its table and its groups differ about {entry.name}. Pack it again.")
    if hash_of(path, [piece[1:] for piece in entry.shell]) != entry.shell_sha256:
        raise CacheError(f"{path}: what it holds of {entry.name} has changed since it was packed. {NEXT_STEP}")


def hash_of(path: Path, stretches: Iterable[tuple[int, int]]) -> str:
    """sha256 over these stretches (start, length) of a file, one after the other."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        for start, length in stretches:
            for block in blocks(file, start, length):
                hasher.update(block)
    return hasher.hexdigest()


def blocks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """`length` bytes from `start` on, a block at a time. Raises CacheError when the file ends before."""
    file.seek(start)
    while length:
        block = file.read(min(length, _BLOCK))
        if not block:
            raise CacheError(f"{file.name}: became shorter while it was read. Start again.")
        length -= len(block)
        yield block


def places_of(name: str) -> tuple[str, str]:
    """Where the arrays of a file lie in the packed one, and where its shell."""
    if name.startswith("words/"):
        return f"{GROUP}/words", f"{GROUP}/words_shell"
    video_id = name.removesuffix(".h5")
    return f"{GROUP}/parts/{video_id}", f"{GROUP}/shells/{video_id}"


def to_line(entry: Entry) -> bytes:
    """One line of the table; `_entry` is the way back."""
    starts = {piece.at: piece.start for piece in entry.pieces}
    arrays = {
        name: [found.dtype.str, list(found.shape), starts.get(found.offset, 0), found.offset]
        for name, found in entry.listed.arrays.items()
    }
    about = {
        "name": entry.name,
        "bytes": entry.size,
        "shell": entry.shell[0].at,
        "shell_sha256": entry.shell_sha256,
        "attributes": dict(entry.listed.attributes),
        "arrays": arrays,
    }
    return json.dumps(about, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def pieces_of(size: int, arrays: Sequence[Piece], shell: int) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """(every byte of a file of `size` bytes in order, those in no array), the latter lying one after the other at `shell`.

    Raises ValueError when arrays overlap or lie outside.
    """
    whole: list[Piece] = []
    rest: list[Piece] = []
    position = 0
    for piece in [*sorted(piece for piece in arrays if piece.length), Piece(size, 0, 0)]:
        gap = piece.start - position
        if gap < 0:
            raise ValueError("arrays that overlap or lie outside the file")
        if gap:
            rest.append(Piece(position, shell, gap))
            whole.append(rest[-1])
            shell += gap
        whole += [piece] if piece.length else []
        position = piece.start + piece.length
    return tuple(whole), tuple(rest)


def _entry(path: Path, found: Mapping[str, Any]) -> Entry:
    size, shell = _whole(found["bytes"]), _whole(found["shell"])
    places = {str(name): _place(path, *about) for name, about in found["arrays"].items()}
    pieces, rest = pieces_of(size, [Piece(start, place.offset, place.size) for place, start in places.values()], shell)
    end, last = path.stat().st_size, max(piece.at + piece.length for piece in pieces)
    if not rest or last > end:
        raise ValueError(f"claims bytes up to {last} of {end}")
    attributes = {str(name): value for name, value in found["attributes"].items() if type(value) in (str, int, float)}
    arrays = {name: place for name, (place, _) in places.items()}
    listed = hdf5.Listed(f"{path}: {found['name']}", attributes, arrays)
    return Entry(str(found["name"]), size, listed, pieces, rest, str(found["shell_sha256"]))


def _place(path: Path, dtype: Any, shape: Any, start: Any, at: Any) -> tuple[hdf5.Location, int]:
    if not _DTYPE.fullmatch(dtype) or len(shape) > 8:
        raise ValueError(f"an array of type {str(dtype)[:20]!r}")
    place = hdf5.Location(path, _whole(at), tuple(map(_whole, shape)), np.dtype(dtype))
    if place.size >= 1 << 62:  # numpy counts in 64 bits
        raise ValueError(f"an array of {place.size} bytes")
    return place, _whole(start)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]!r}, expected a whole number")
    return value

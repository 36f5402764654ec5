"""One file for moving and back: `pack` puts an index and everything beside it into one, `unpack` takes it apart again.

Arrays become arrays of the packed file, so that any HDF5 program and a memory map find them; the other bytes of a part are kept
as they are, so that unpacking gives back every file byte for byte, whatever a part may hold and whoever wrote it.
"""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Index, VideoRow, read_index, seen_from_another, write_index
from costl.pipeline.cache.lock import locked
from costl.pipeline.cache.pack_table import (
    ENDS,
    NEXT_STEP,
    TABLE,
    Entry,
    Piece,
    blocks,
    hash_of,
    pieces_of,
    places_of,
    to_line,
)
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import Damage, verify
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.progress import Progress, Tell

_NAMED = 5
_UNTOUCHED_S = 60.0  # a running packing writes all the time
_BESIDE = 1 << 14  # bytes of HDF5's own that a file costs inside a packed one, rounded up


@dataclass(frozen=True)
class Packed:
    """What was written: `videos` with features, `size_bytes` in all, and the videos left out as `damaged`."""

    path: Path
    videos: int
    size_bytes: int
    damaged: tuple[Damage, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The file."""
        return [str(self.path)]

    def data(self) -> dict[str, Any]:
        """Every field; the file is called `out`."""
        damaged = [vars(damage) | {"path": str(damage.path)} for damage in self.damaged]
        return {"out": str(self.path), "videos": self.videos, "size_bytes": self.size_bytes, "damaged": damaged}

    def messages(self) -> list[str]:
        """What was left out, and the counts."""
        counts = f"{self.videos} videos and the words, {self.size_bytes / 1e6:.1f} MB."
        return [*(f"left out: {damage.name}: {damage.problem}" for damage in self.damaged), counts]


@dataclass(frozen=True)
class Unpacked:
    """What was written: the index, `videos` with features, and the videos left out as `damaged`."""

    path: Path
    videos: int
    damaged: tuple[Damage, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The index."""
        return [str(self.path)]

    def data(self) -> dict[str, Any]:
        """Every field; the index is called `out`."""
        damaged = [vars(damage) | {"path": str(damage.path)} for damage in self.damaged]
        return {"out": str(self.path), "videos": self.videos, "damaged": damaged}

    def messages(self) -> list[str]:
        """What was left out, and the counts."""
        left_out = (f"left out: {damage.name}: {damage.problem}" for damage in self.damaged)
        return [*left_out, f"{self.videos} videos and the words."]


def pack(path: Path, *, out: Path, without_damaged: bool = False, progress: Tell | None = None) -> Packed:
    """Writes the cache at `path` as one self-contained file; the same cache gives the same bytes.

    Every part is compared with its checksum first. `without_damaged` leaves the damaged ones out: their rows say so.
    Memory does not grow with the size of the cache. Raises CacheError, before anything is written, when parts are damaged
    (naming them) or the disk has no room, and UsageError when `out` exists or `path` is packed already.
    """
    tell, index = progress or (lambda _: None), read_index(path)
    if index.table:
        raise UsageError(f"{path}: is one packed file already. Copy it, or take it apart with costl cache unpack.")
    _refuse_existing(out)
    damaged = verify(path, progress=tell).damaged
    _refuse_damaged(path, damaged, without=without_damaged)
    index = _moved(_without(index, damaged, "packed"), path.parent, out.parent)
    sources = [parts_folder(path) / name for name in index.files]
    _check_room(out, path.stat().st_size + sum(source.stat().st_size + _BESIDE for source in sources))
    _make_folder(out.parent)
    _remove_half_written(out)
    write_index(
        out,
        index,
        more=lambda file: _put_files(file, out, list(zip(index.files, sources, strict=True))),
        then=lambda aside: _fill(aside, sources, tell),
    )
    return Packed(out, len(sources) - 1, out.stat().st_size, damaged)


def unpack(path: Path, *, out: Path, without_damaged: bool = False, progress: Tell | None = None) -> Unpacked:
    """Takes a packed file apart: the index `out` and the folder of parts beside it, every file as it was before packing.

    An unpacking that was stopped goes on: parts that are there already are compared, not written. `without_damaged` leaves
    out the parts that are damaged: their rows say so, and an extraction makes them again. Raises CacheError when the packed
    file is damaged, when the disk has no room or another process writes there, and UsageError when `out` exists, when another
    cache's part is in the way, or when `path` is not packed.
    """
    tell, reader, index = progress or (lambda _: None), CacheReader(path), read_index(path)
    if index.table is None:
        raise UsageError(f"{path}: is not packed, its parts lie in {parts_folder(path)}. Copy both as they are.")
    _refuse_existing(out)
    damaged = verify(path, progress=tell).damaged if without_damaged else ()
    _refuse_damaged(path, damaged, without=True)
    lost = {damage.name for damage in damaged}
    _check_room(out, _unpacked_size(index, lost))
    todo = [(name, video) for name, video in _contents(index) if video not in lost]
    _make_folder(parts_folder(out) / "words")
    with locked(out):
        for number, (name, video) in enumerate(todo, start=1):
            # In full just before it is copied: from the disk it comes once.
            reader.verify(video) if video else reader.verify_words()
            _restore(index.table.entry(name), path, parts_folder(out) / name)
            tell(Progress("unpack", number, len(todo), video or "words"))
        index = replace(_moved(_without(index, damaged, "unpacked"), path.parent, out.parent), table=None)
        write_index(out, index)
    return Unpacked(out, len(todo) - 1, damaged)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: is there already. Choose another --out, or delete it first.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be made ({error.strerror}). Choose another --out.") from error


def _refuse_damaged(path: Path, damaged: tuple[Damage, ...], *, without: bool) -> None:
    words = any(damage.name == "(words)" for damage in damaged)
    if damaged and (words or not without):
        more = f" and {len(damaged) - _NAMED} more (costl cache verify {path})" if len(damaged) > _NAMED else ""
        named = ", ".join(damage.name for damage in damaged[:_NAMED])
        instead = "" if words else ", or leave their videos out with --without-damaged"
        again = "Delete those files and run costl extract again, which makes only them"
        then = NEXT_STEP.rstrip(".") if read_index(path).table else again
        raise CacheError(f"{path}: damaged: {named}{more}. {then}{instead}.")


def _without(index: Index, damaged: tuple[Damage, ...], when: str) -> Index:
    reasons = {damage.name: f"damaged when it was {when}: {damage.problem}" for damage in damaged}
    rows = [
        VideoRow(row.id, "damaged", row.name, reason=reasons[row.name], content_hash=row.content_hash)
        if row.ok and row.name in reasons
        else row
        for row in index.rows
    ]
    return replace(index, rows=rows)


def _moved(index: Index, old: Path, new: Path) -> Index:
    return replace(index, contents=seen_from_another(index.contents, old, new))


def _check_room(out: Path, needed: int) -> None:
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CacheError(
            f"{out}: needs {needed / 1e9:.2f} GB, {place} has {free / 1e9:.2f} GB free. "
            "Free space, or choose another --out."
        )


def _remove_half_written(out: Path) -> None:
    """Takes away what a killed packing left: of a process that is gone, and untouched, since it may run elsewhere."""
    for stray in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        pid = stray.suffixes[-2].removeprefix(".").partition("-")[0]
        if pid.isdecimal() and not _runs(int(pid)) and time.time() - stray.stat().st_mtime > _UNTOUCHED_S:
            stray.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _put_files(file: Any, out: Path, named: list[tuple[str, Path]]) -> None:
    """Makes room for every file, and the table that says where."""
    lines = [_reserve(file, out, name, source) for name, source in named]
    file[TABLE] = np.frombuffer(b"".join(lines), np.uint8)
    file[ENDS] = np.cumsum([len(line) for line in lines], dtype=np.int64)


def _reserve(file: Any, out: Path, name: str, source: Path) -> bytes:
    """Makes room for one file in the packed one; -> its line of the table."""
    hdf5.refuse_link(source)
    with hdf5.reading(source) as part:
        there, attributes = hdf5.arrays_in(part), hdf5.scalars_in(part)
    where, shell_where = places_of(name)
    group, size = file.create_group(where), source.stat().st_size
    hdf5.put_attributes(group, attributes)
    here = {
        label: replace(found, path=out, offset=hdf5.reserve(group, label, found.shape, found.dtype))
        for label, found in there.items()
    }
    arrays = [Piece(found.offset, here[label].offset, found.size) for label, found in there.items()]
    try:
        length = sum(piece.length for piece in pieces_of(size, arrays, 0)[1])
    except ValueError as error:
        raise CacheError(f"{source}: {error}. Delete it and run costl extract again.") from error
    shell_at = hdf5.reserve(file, shell_where, (length,), np.dtype("u1"))
    pieces, shell = pieces_of(size, arrays, shell_at)
    listed = hdf5.Listed(str(out), attributes, here)
    return to_line(Entry(name, size, listed, pieces, shell, hash_of(source, [piece[::2] for piece in shell])))


def _fill(aside: Path, sources: list[Path], tell: Tell) -> None:
    """Copies every byte to where the table of the file says that it belongs."""
    table = read_index(aside).table
    assert table is not None
    with aside.open("r+b") as target:
        for number, (entry, source) in enumerate(zip(table.entries(), sources, strict=True), start=1):
            with source.open("rb") as file:
                for piece in entry.pieces:
                    target.seek(piece.at)
                    target.writelines(blocks(file, piece.start, piece.length))
            tell(Progress("pack", number, len(sources), source.name))


def _unpacked_size(index: Index, lost: set[str]) -> int:
    """Bytes of all that a packed file holds. Raises CacheError for more than it can hold: the same bytes again and again."""
    assert index.table is not None
    total = sum(index.table.entry(name).size for name, video in _contents(index) if video not in lost)
    most = index.table.path.stat().st_size
    if total > most:
        raise CacheError(
            f"{index.table.path}: {most} bytes that claim to hold {total}. Delete it: costl cache pack made no such."
        )
    return total


def _contents(index: Index) -> Iterator[tuple[str, str]]:
    """(name of a file, the video it belongs to or nothing) in the order of the table."""
    return zip(index.files, [*(row.name for row in index.rows if row.ok), ""], strict=True)


def _restore(entry: Entry, packed: Path, target: Path) -> None:
    hdf5.refuse_link(target)
    with packed.open("rb") as source:
        if target.exists():
            _refuse_another(entry, source, target)
            return
        with hdf5.publishing(target) as aside, aside.open("wb") as file:
            for piece in entry.pieces:
                file.writelines(blocks(source, piece.at, piece.length))


def _refuse_another(entry: Entry, source: BinaryIO, target: Path) -> None:
    """Raises UsageError unless the file at `target` is the one that `entry` holds."""
    same = target.is_file() and target.stat().st_size == entry.size
    if same:
        with target.open("rb") as file:
            same = all(
                ours == theirs
                for piece in entry.pieces
                for ours, theirs in zip(
                    blocks(source, piece.at, piece.length), blocks(file, piece.start, piece.length), strict=True
                )
            )
    if not same:
        raise UsageError(f"{target}: is another file than the packed one. Choose another --out, or delete it first.")

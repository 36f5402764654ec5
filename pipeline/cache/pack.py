"""Packs a cache into one file to move it, and unpacks it again.

Arrays of a part become arrays of the packed file, so that any HDF5 program and a memory map can read them. The other bytes of
a part, its shell, are stored unchanged, so that unpacking restores every file byte for byte, whichever program wrote it.
"""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Index, VideoRow, read_index, relocate_contents, write_index
from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.pack_table import (
    ENDS,
    NEXT_STEP,
    TABLE,
    ByteRange,
    Entry,
    hash_ranges,
    packed_names,
    read_blocks,
    split_into_ranges,
    to_json_line,
)
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import Damage, verify
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.progress import Progress, ProgressCallback

_MAX_NAMED = 5
_ABANDONED_S = 60.0  # a running `pack` writes to its temporary file more often than this
_OVERHEAD_BYTES = 1 << 14  # of HDF5 for each file inside a packed one, rounded up


@dataclass(frozen=True)
class PackReport:
    """The packed file: `videos` with features, its `size_bytes`, and the videos left out as `damaged`."""

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
        damaged = [damage.data() for damage in self.damaged]
        return {"out": str(self.path), "videos": self.videos, "size_bytes": self.size_bytes, "damaged": damaged}

    def messages(self) -> list[str]:
        """The videos left out, and the counts."""
        return [*_left_out(self.damaged), f"{self.videos} videos and the words, {self.size_bytes / 1e6:.1f} MB."]


@dataclass(frozen=True)
class UnpackReport:
    """The unpacked cache: `path` of its index, `videos` with features, and the videos left out as `damaged`."""

    path: Path
    videos: int
    damaged: tuple[Damage, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The index."""
        return [str(self.path)]

    def data(self) -> dict[str, Any]:
        """Every field; the index is called `out`."""
        damaged = [damage.data() for damage in self.damaged]
        return {"out": str(self.path), "videos": self.videos, "damaged": damaged}

    def messages(self) -> list[str]:
        """The videos left out, and the counts."""
        return [*_left_out(self.damaged), f"{self.videos} videos and the words."]


def _left_out(damaged: Iterable[Damage]) -> list[str]:
    return [f"left out: {damage.name}: {damage.problem}" for damage in damaged]


def pack(
    path: Path, *, out: Path, without_damaged: bool = False, progress: ProgressCallback | None = None
) -> PackReport:
    """Writes the cache at `path` as one self-contained file; the same cache gives the same bytes.

    Every part is compared with its checksum first. `without_damaged` leaves damaged parts out, and their rows give the reason.
    Memory does not grow with the size of the cache. Raises CacheError, before anything is written, when parts are damaged
    (naming them) or the disk has no room, and UsageError when `out` exists or `path` is packed already.
    """
    report_progress = progress or (lambda _: None)
    index = read_index(path)
    if index.pack_table:
        raise UsageError(f"{path}: is one packed file already. Copy it, or take it apart with costl cache unpack.")
    _refuse_existing(out)
    damaged = verify(path, progress=report_progress).damaged
    _refuse_damaged(path, damaged, without_damaged=without_damaged)
    index = _without_damaged(index, damaged, "packed")
    index = _relocated(index, path.parent, out.parent)
    sources = [parts_folder(path) / name for name in index.files]
    _check_free_space(out, path.stat().st_size + sum(source.stat().st_size + _OVERHEAD_BYTES for source in sources))
    _make_folder(out.parent)
    _remove_abandoned(out)
    write_index(
        out,
        index,
        extend=lambda file: _reserve_all(file, out, index.files, sources),
        finish=lambda temporary: _copy_all(temporary, sources, report_progress),
    )
    return PackReport(out, len(sources) - 1, out.stat().st_size, damaged)


def unpack(
    path: Path, *, out: Path, without_damaged: bool = False, progress: ProgressCallback | None = None
) -> UnpackReport:
    """Unpacks a packed file: the index `out` and the folder of parts next to it, every file as it was before packing.

    An interrupted call can be repeated: parts that exist are compared, not written. `without_damaged` leaves damaged parts
    out; their rows give the reason, and an extraction makes them again. Raises CacheError when the packed file is damaged,
    the disk has no room, or another process writes to `out`; UsageError when `out` exists, when a part of another cache is
    in its folder, or when `path` is not packed.
    """
    report_progress = progress or (lambda _: None)
    reader = CacheReader(path)
    index = read_index(path)
    if index.pack_table is None:
        raise UsageError(f"{path}: is not packed, its parts lie in {parts_folder(path)}. Copy both as they are.")
    _refuse_existing(out)
    damaged = verify(path, progress=report_progress).damaged if without_damaged else ()
    _refuse_damaged(path, damaged, without_damaged=True)
    left_out = {damage.name for damage in damaged}
    _check_free_space(out, _unpacked_bytes(index, left_out))
    entries = [(name, video) for name, video in _files_and_videos(index) if video not in left_out]
    _make_folder(parts_folder(out) / "words")
    with locked_cache(out):
        for number, (name, video) in enumerate(entries, start=1):
            # Each part is verified in full just before it is copied, so that it is read from the disk only once.
            if video:
                reader.verify(video)
            else:
                reader.verify_words()
            _restore(index.pack_table.entry(name), path, parts_folder(out) / name)
            report_progress(Progress("unpack", number, len(entries), video or "words"))
        index = _without_damaged(index, damaged, "unpacked")
        index = _relocated(index, path.parent, out.parent)
        write_index(out, replace(index, pack_table=None))
    return UnpackReport(out, len(entries) - 1, damaged)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: already exists. Choose another --out, or delete it first.")


def _refuse_damaged(path: Path, damaged: tuple[Damage, ...], *, without_damaged: bool) -> None:
    """Raises CacheError for damaged parts unless they are to be left out, and for damaged words in any case."""
    words = any(damage.name == "(words)" for damage in damaged)
    if damaged and (words or not without_damaged):
        more = f" and {len(damaged) - _MAX_NAMED} more (costl cache verify {path})" if len(damaged) > _MAX_NAMED else ""
        names = ", ".join(damage.name for damage in damaged[:_MAX_NAMED])
        leave_out = "" if words else ", or leave their videos out with --without-damaged"
        extract_again = "Delete those files and run costl extract again, which makes only them"
        next_step = NEXT_STEP.rstrip(".") if read_index(path).pack_table else extract_again
        raise CacheError(f"{path}: damaged: {names}{more}. {next_step}{leave_out}.")


def _without_damaged(index: Index, damaged: tuple[Damage, ...], verb: str) -> Index:
    """The index with a row of status "damaged" for every damaged part."""
    reasons = {damage.name: f"damaged when it was {verb}: {damage.problem}" for damage in damaged}
    rows = [
        VideoRow(row.id, "damaged", row.name, reason=reasons[row.name], content_hash=row.content_hash)
        if row.ok and row.name in reasons
        else row
        for row in index.rows
    ]
    return replace(index, rows=rows)


def _relocated(index: Index, old: Path, new: Path) -> Index:
    return replace(index, contents=relocate_contents(index.contents, old, new))


def _check_free_space(out: Path, needed_bytes: int) -> None:
    folder = next(folder for folder in out.absolute().parents if folder.exists())
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise CacheError(
            f"{out}: needs {needed_bytes / 1e9:.2f} GB, {folder} has {free_bytes / 1e9:.2f} GB free. "
            "Free space, or choose another --out."
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be made ({error.strerror}). Choose another --out.") from error


def _remove_abandoned(out: Path) -> None:
    """Removes the temporary files of a killed `pack`.

    The process must be gone, and the file unchanged for a minute, since the process may run on another machine.
    """
    for temporary in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        pid = temporary.suffixes[-2].removeprefix(".").partition("-")[0]
        if pid.isdecimal() and not _runs(int(pid)) and time.time() - temporary.stat().st_mtime > _ABANDONED_S:
            temporary.unlink(missing_ok=True)


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


def _reserve_all(file: Any, out: Path, names: list[str], sources: list[Path]) -> None:
    """Reserves the bytes of every file in the open packed file, and writes its table."""
    lines = [_reserve(file, out, name, source) for name, source in zip(names, sources, strict=True)]
    file[TABLE] = np.frombuffer(b"".join(lines), np.uint8)
    file[ENDS] = np.cumsum([len(line) for line in lines], dtype=np.int64)


def _reserve(file: Any, out: Path, name: str, source: Path) -> bytes:
    """Reserves the bytes of one file in the packed one, and returns its line of the table."""
    hdf5.refuse_link(source)
    with hdf5.open_file(source) as part:
        arrays = hdf5.locate_arrays(part)
        attributes = hdf5.read_scalars(part)
    group_name, shell_name = packed_names(name)
    group = file.create_group(group_name)
    size = source.stat().st_size
    hdf5.put_attributes(group, attributes)
    packed_arrays: dict[str, hdf5.Location] = {}
    array_ranges: list[ByteRange] = []
    for label, array in arrays.items():
        packed_offset = hdf5.reserve(group, label, array.shape, array.dtype)
        packed_arrays[label] = replace(array, path=out, offset=packed_offset)
        array_ranges.append(ByteRange(array.offset, packed_offset, array.size))
    try:
        _, shell = split_into_ranges(size, array_ranges, 0)
    except ValueError as error:
        raise CacheError(f"{source}: {error}. Delete it and run costl extract again.") from error
    shell_bytes = sum(part.length for part in shell)
    shell_offset = hdf5.reserve(file, shell_name, (shell_bytes,), np.dtype("u1"))
    ranges, shell = split_into_ranges(size, array_ranges, shell_offset)
    shell_sha256 = hash_ranges(source, [(part.file_offset, part.length) for part in shell])
    packed_file = hdf5.PackedFile(str(out), attributes, packed_arrays)
    return to_json_line(Entry(name, size, packed_file, ranges, shell, shell_sha256))


def _copy_all(packed: Path, sources: list[Path], report_progress: ProgressCallback) -> None:
    """Copies the bytes of every file to the offsets in the table of the packed file."""
    table = read_index(packed).pack_table
    assert table is not None
    with packed.open("r+b") as target:
        for number, (entry, source) in enumerate(zip(table.entries(), sources, strict=True), start=1):
            with source.open("rb") as file:
                for part in entry.ranges:
                    target.seek(part.packed_offset)
                    target.writelines(read_blocks(file, part.file_offset, part.length))
            report_progress(Progress("pack", number, len(sources), source.name))


def _unpacked_bytes(index: Index, left_out: set[str]) -> int:
    """The size of all files in a packed one. Raises CacheError when they exceed it: then ranges of bytes are used twice."""
    assert index.pack_table is not None
    entries = (index.pack_table.entry(name) for name, video in _files_and_videos(index) if video not in left_out)
    total = sum(entry.size for entry in entries)
    packed_bytes = index.pack_table.path.stat().st_size
    if total > packed_bytes:
        raise CacheError(
            f"{index.pack_table.path}: {packed_bytes} bytes that claim to hold {total}. Delete it: costl cache pack did "
            "not make this file."
        )
    return total


def _files_and_videos(index: Index) -> Iterator[tuple[str, str]]:
    """(name of a file, its video, "" for the words) in the order of the table."""
    videos = [row.name for row in index.rows if row.ok]
    return zip(index.files, [*videos, ""], strict=True)


def _restore(entry: Entry, packed: Path, target: Path) -> None:
    """Writes the file of an entry to `target`, byte for byte; an existing one is only compared."""
    hdf5.refuse_link(target)
    with packed.open("rb") as source:
        if target.exists():
            _refuse_different(entry, source, target)
            return
        with hdf5.atomic_path(target) as temporary, temporary.open("wb") as file:
            for part in entry.ranges:
                file.writelines(read_blocks(source, part.packed_offset, part.length))


def _refuse_different(entry: Entry, source: BinaryIO, target: Path) -> None:
    """Raises UsageError unless the file at `target` has the content of `entry` in the packed file `source`."""
    same = target.is_file() and target.stat().st_size == entry.size
    if same:
        with target.open("rb") as file:
            same = all(_same_bytes(part, source, file) for part in entry.ranges)
    if not same:
        raise UsageError(f"{target}: is another file than the packed one. Choose another --out, or delete it first.")


def _same_bytes(part: ByteRange, packed: BinaryIO, file: BinaryIO) -> bool:
    packed_blocks = read_blocks(packed, part.packed_offset, part.length)
    file_blocks = read_blocks(file, part.file_offset, part.length)
    return all(one == other for one, other in zip(packed_blocks, file_blocks, strict=True))

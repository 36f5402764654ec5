"""Packs a cache into one file to move it, and unpacks it again.

Arrays of a part become arrays of the packed file, so that any HDF5 program and a memory map can read them. The other bytes of
a part, its shell, are stored unchanged, so that unpacking restores every file byte for byte, whichever program wrote it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import read_index, relocate_contents, write_index
from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.pack_table import (
    ENDS,
    TABLE,
    ByteRange,
    Entry,
    PackTable,
    hash_ranges,
    packed_names,
    read_blocks,
    split_into_ranges,
)
from costl.pipeline.cache.part import parts_folder, read_attributes, temporary_files
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.errors import CacheError, UsageError, first_few
from costl.pipeline.progress import Progress, ProgressCallback

_ABANDONED_S = 3600.0  # a running `pack` writes to its temporary file more often than this
_OVERHEAD_BYTES = 1 << 14  # of HDF5 for each file inside a packed one, rounded up


def pack(path: Path, *, out: Path, progress: ProgressCallback | None = None) -> Path:
    """Writes the cache at `path` as one self-contained file and returns its path; the same cache gives the same bytes.

    Every part is compared with its checksum first. Memory does not grow with the size of the cache. Raises CacheError, before
    anything is written, when parts are damaged (naming them) or the disk has no room, and UsageError when `out` exists or
    `path` is packed already.
    """
    report_progress = progress or (lambda _: None)
    index = read_index(path)
    if index.pack_table:
        raise UsageError(f"{path}: is one packed file already. Copy it, or take it apart with costl cache unpack.")
    _refuse_existing(out)
    damaged = verify(path, progress=report_progress).damaged
    if damaged:
        raise CacheError(
            f"{path}: damaged: {first_few(damage.name for damage in damaged)}. Delete those files and run costl extract "
            "again, which makes only them."
        )
    index = replace(index, contents=relocate_contents(index.contents, path.parent, out.parent))
    sources = [parts_folder(path) / name for name in index.files]
    _check_free_space(out, path.stat().st_size + sum(source.stat().st_size + _OVERHEAD_BYTES for source in sources))
    _remove_abandoned(out)
    write_index(
        out,
        index,
        extend=lambda file: _reserve_all(file, index.files, sources),
        finish=lambda temporary: _copy_all(temporary, sources, report_progress),
    )
    return out


def unpack(path: Path, *, out: Path, progress: ProgressCallback | None = None) -> Path:
    """Unpacks a packed file: the index `out` and the folder of parts next to it, every file as it was before packing.

    Returns the path of the index.
    An interrupted call can be repeated: parts that exist are compared, not written. Raises CacheError when the packed file
    is damaged, the disk has no room, or another process writes to `out`; UsageError when `out` exists, when a part of
    another cache is in its folder, or when `path` is not packed.
    """
    report_progress = progress or (lambda _: None)
    reader = CacheReader(path)
    table = reader.pack_table
    if table is None:
        raise UsageError(f"{path}: is not packed, its parts lie in {parts_folder(path)}. Copy both as they are.")
    _refuse_existing(out)
    _check_free_space(out, _unpacked_bytes(table))
    index = read_index(path)
    # Each file is verified in full just before it is copied, so that it is read from the disk only once.
    checks: list[Callable[[], None]] = [partial(reader.verify, video) for video in reader.video_ids]
    checks.append(reader.verify_words)
    with locked_cache(out):
        for number, (name, check) in enumerate(zip(index.files, checks, strict=True), start=1):
            check()
            _restore(table.entry(name), path, parts_folder(out) / name)
            report_progress(Progress("unpack", number, len(checks), name))
        contents = relocate_contents(index.contents, path.parent, out.parent)
        write_index(out, replace(index, contents=contents))
    return out


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: already exists. Choose another --out, or delete it first.")


def _check_free_space(out: Path, needed_bytes: int) -> None:
    folder = next(folder for folder in out.absolute().parents if folder.exists())
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise CacheError(
            f"{out}: needs {needed_bytes / 1e9:.2f} GB, {folder} has {free_bytes / 1e9:.2f} GB free. "
            "Free space, or choose another --out."
        )


def _remove_abandoned(out: Path) -> None:
    """Removes the temporary files of a `pack` that was killed; they are as large as the cache."""
    for temporary in temporary_files(out):
        if time.time() - temporary.stat().st_mtime > _ABANDONED_S:
            temporary.unlink(missing_ok=True)


def _reserve_all(file: Any, names: list[str], sources: list[Path]) -> None:
    """Reserves the bytes of every file in the open packed file, and writes its table."""
    entries = [_reserve(file, name, source) for name, source in zip(names, sources, strict=True)]
    lines = [
        json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n" for entry in entries
    ]
    file[TABLE] = np.frombuffer(b"".join(lines), np.uint8)
    file[ENDS] = np.cumsum([len(line) for line in lines], dtype=np.int64)


def _reserve(file: Any, name: str, source: Path) -> dict[str, Any]:
    """Reserves the bytes of one file in the packed one, and returns its entry for the table."""
    hdf5.refuse_link(source)
    with hdf5.open_file(source) as part:
        arrays = hdf5.locate_arrays(part)
        attributes = {} if name.startswith("words/") else dict(sorted(read_attributes(part).items()))
    group_name, shell_path = packed_names(name)
    shell_group, _, shell_name = shell_path.rpartition("/")
    group = file.create_group(group_name)
    hdf5.put_attributes(group, attributes)
    size = source.stat().st_size
    packed_arrays: dict[str, list[Any]] = {}
    array_ranges: list[ByteRange] = []
    for label, array in arrays.items():
        packed_offset = hdf5.reserve(group, label, array.shape, array.dtype)
        packed_arrays[label] = [array.dtype.str, list(array.shape), array.offset, packed_offset]
        array_ranges.append(ByteRange(array.offset, packed_offset, array.size))
    try:
        _, shell = split_into_ranges(size, array_ranges, 0)
    except ValueError as error:
        raise CacheError(f"{source}: {error}. Delete it and run costl extract again.") from error
    shell_bytes = sum(part.length for part in shell)
    return {
        "name": name,
        "bytes": size,
        "shell": hdf5.reserve(file.require_group(shell_group), shell_name, (shell_bytes,), np.dtype("u1")),
        "shell_sha256": hash_ranges(source, shell),
        "attributes": attributes,
        "arrays": packed_arrays,
    }


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


def _unpacked_bytes(table: PackTable) -> int:
    """The size of all files in a packed one. Raises CacheError when they exceed it: then ranges of bytes are used twice."""
    total = sum(entry.size for entry in table.entries())
    packed_bytes = table.path.stat().st_size
    if total > packed_bytes:
        raise CacheError(
            f"{table.path}: {packed_bytes} bytes that claim to hold {total}. Delete it: costl cache pack did not make this "
            "file."
        )
    return total


def _restore(entry: Entry, packed: Path, target: Path) -> None:
    """Writes the file of an entry to `target`, byte for byte; an existing one is only compared."""
    hdf5.refuse_link(target)
    if target.exists():
        same_size = target.stat().st_size == entry.size
        if not same_size or hash_ranges(target, entry.ranges) != hash_ranges(packed, entry.ranges, packed=True):
            raise UsageError(f"{target}: is another file than the packed one. Choose another --out, or delete it first.")
        return
    with hdf5.atomic_path(target) as temporary, temporary.open("wb") as file, packed.open("rb") as source:
        for part in entry.ranges:
            file.writelines(read_blocks(source, part.packed_offset, part.length))

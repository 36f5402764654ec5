"""Brings a search file up to date with its cache: appends new videos, masks those that are gone, rewrites a wasteful file."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.pipeline.formats.files import locked, remove_half_written, sync
from costl.pipeline.library.vectors import HEADER_BYTES, Vectors, checksum, header, open_table, open_vectors
from costl.pipeline.library.vectors_table import TABLE, VectorsTable, write_table
from costl.pipeline.progress import Progress, ProgressCallback

DEAD_SHARE = 1 / 3  # of the rows: the file is then written anew
_PUBLISH_EVERY_S = 10.0
_LOCK = ".vectors.lock"


class _Extent(NamedTuple):
    """Where the vectors of a video are: rows [row, row + clips), with this CRC-32."""

    row: int
    clips: int
    crc: int


def update_vectors(folder: Path, cache: CacheReader, *, progress: ProgressCallback | None = None) -> Vectors:
    """The search file in `folder` with exactly the videos of `cache` that have features.

    Reads only what is new in the cache, and writes nothing where nothing has changed. A video is known by the checksum of
    its row, so another name costs nothing. A search file that is damaged, foreign or made with other settings is made
    again. A video whose part cannot be read is left out, with the reason in `unreadable`, and tried again next time.
    Raises CacheError where the joint space of the cache is unknown, where another process is updating the folder, and
    where the folder cannot be written or the disk is full; the old search file is then as it was.
    """
    if not cache.joint.is_known:
        raise CacheError(
            f"{cache.path}: has no joint space, in which sentences and frames can be compared, so it cannot be searched. "
            "Extract the videos with costl extract."
        )
    unreadable: dict[str, str] = {}
    table = _usable_table(folder, cache)
    if table is not None and _is_current(table, cache):
        _remove_leftovers_if_unlocked(folder)
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / _LOCK, f"{folder}: another process is updating it. Wait for it, then try again."):
                unreadable = _update(folder, cache, progress or (lambda _: None))
        except OSError as error:
            raise hdf5.write_error(folder, error) from error
    return replace(open_vectors(folder), unreadable=unreadable)


def _usable_table(folder: Path, cache: CacheReader) -> VectorsTable | None:
    """The present table; None where nothing is there that can be used for this cache."""
    try:
        table, _ = open_table(folder)
    except CacheError:
        return None
    is_same = (table.cache, table.fps, table.width) == (cache.digest, cache.fps, cache.joint.width)
    return table if is_same else None


def _is_current(table: VectorsTable, cache: CacheReader) -> bool:
    stored = zip(table.keys, table.checksums, table.durations_s.tolist(), strict=True)
    return sorted(stored) == sorted((row.name, row.checksum, row.duration_s) for row in cache.rows if row.ok)


def _update(folder: Path, cache: CacheReader, report_progress: ProgressCallback) -> dict[str, str]:
    """Updates the locked folder; returns the videos that cannot be read with their reasons."""
    table = _usable_table(folder, cache)
    stored = _extents(table) if table else {}
    videos = [row for row in cache.rows if row.ok]
    reused = {row.checksum: stored[row.checksum] for row in videos if row.checksum in stored}
    alive = sum(extent.clips for extent in reused.values())
    if table and table.written_rows and alive > (1 - DEAD_SHARE) * table.written_rows:
        writer = _Writer(folder, cache, table.data, table.written_rows, reused)
    else:
        writer = _Writer(folder, cache, f"vectors-{secrets.token_hex(8)}.f16", 0, {})
    with writer:
        if table and not writer.extents:
            _copy(open_table(folder)[1], reused, writer)
        unreadable = _append_missing(writer, cache, videos, report_progress)
        writer.publish(videos)
    _remove_leftovers(folder, writer.path.name)
    return unreadable


def _extents(table: VectorsTable) -> dict[str, _Extent]:
    """The extent of each checksum."""
    columns = zip(table.rows.tolist(), table.clips.tolist(), table.crcs.tolist(), strict=True)
    return dict(zip(table.checksums, map(_Extent._make, columns), strict=True))


def _copy(array: np.ndarray, extents: dict[str, _Extent], writer: _Writer) -> None:
    """Copies rows of the old file, float16 [rows e]."""
    for key, extent in sorted(extents.items(), key=lambda item: item[1].row):
        writer.append(key, array[extent.row : extent.row + extent.clips])


def _append_missing(
    writer: _Writer, cache: CacheReader, videos: list[VideoRow], report_progress: ProgressCallback
) -> dict[str, str]:
    """Appends the videos that are not in the file, and publishes the table every few seconds."""
    unreadable: dict[str, str] = {}
    missing = [row for row in videos if row.checksum not in writer.extents]
    next_publish_s = time.monotonic() + _PUBLISH_EVERY_S
    for number, row in enumerate(missing):
        report_progress(Progress("vectors", number, len(missing), row.name))
        if row.checksum in writer.extents:  # a copy of a video before it
            continue
        try:
            writer.append(row.checksum, _read_vectors(cache, row))
        except CacheError as error:
            unreadable[row.name] = str(error)
        if time.monotonic() >= next_publish_s:
            writer.publish(videos)
            next_publish_s = time.monotonic() + _PUBLISH_EVERY_S
    report_progress(Progress("vectors", len(missing), len(missing)))
    return unreadable


def _read_vectors(cache: CacheReader, row: VideoRow) -> np.ndarray:
    """The joint vectors of a video, float16 [t e]. Raises CacheError when its part is missing or damaged."""
    vectors = cache.joint_vectors(row.name).astype("<f2")
    if not np.isfinite(vectors).all():
        raise CacheError(f"{cache.part_path(row.name)}: non-finite joint vectors. Delete it and run costl extract again.")
    return vectors


class _Writer:
    """Appends to a data file after its first `rows` rows, which hold `extents`, and publishes tables that name them.

    `extents`: by checksum. When the block ends by an error, the file is cut back to the rows of the last table.
    """

    def __init__(self, folder: Path, cache: CacheReader, name: str, rows: int, extents: dict[str, _Extent]):
        self.path = folder / name
        self.extents = dict(extents)
        self._cache = cache
        self._width = cache.joint.width
        self._rows = rows
        self._published_rows = rows

    def __enter__(self) -> _Writer:
        self._file = self.path.open("r+b" if self._rows else "w+b")
        if not self._rows:
            self._file.write(header(self.path.name, self._width))
            sync(self.path.parent)  # the table must not be on the disk before this name is
        self._file.truncate(self._size(self._rows))  # a killed update may have left more
        self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._file.close()
        if error:
            with contextlib.suppress(OSError):
                self._discard()

    def append(self, key: str, vectors: np.ndarray) -> None:
        """Appends the vectors of one video, float16 [t e]."""
        self._file.write(np.ascontiguousarray(vectors, "<f2").data)
        self.extents[key] = _Extent(self._rows, len(vectors), checksum(vectors))
        self._rows += len(vectors)

    def publish(self, videos: Iterable[VideoRow]) -> None:
        """Forces the rows to the disk, then publishes the table with those of `videos` that are in the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_table(self.path.parent, self._table(videos))
        self._published_rows = self._rows

    def _table(self, videos: Iterable[VideoRow]) -> VectorsTable:
        present = [row for row in videos if row.checksum in self.extents]
        present.sort(key=lambda row: self.extents[row.checksum].row)
        extents = [self.extents[row.checksum] for row in present]
        return VectorsTable(
            cache=self._cache.digest,
            fps=self._cache.fps,
            width=self._width,
            data=self.path.name,
            written_rows=self._rows,
            keys=tuple(row.name for row in present),
            checksums=tuple(row.checksum for row in present),
            rows=np.array([extent.row for extent in extents], np.int64),
            clips=np.array([extent.clips for extent in extents], np.int64),
            crcs=np.array([extent.crc for extent in extents], np.int64),
            durations_s=np.array([row.duration_s for row in present], np.float64),
        )

    def _size(self, rows: int) -> int:
        return HEADER_BYTES + 2 * self._width * rows

    def _discard(self) -> None:
        if self._published_rows:
            os.truncate(self.path, self._size(self._published_rows))
        else:
            self.path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path, data: str) -> None:
    """Removes data files other than `data`, and what killed updates left."""
    remove_half_written(folder, TABLE)
    for other in folder.glob("vectors-*.f16"):
        if other.name != data:
            with contextlib.suppress(OSError):  # Windows: a process may still read it
                other.unlink()


def _remove_leftovers_if_unlocked(folder: Path) -> None:
    """The same where a killed update left something, unless another process is updating, or the folder is read-only."""
    if len([*folder.glob("*vectors*")]) > 3:
        with contextlib.suppress(OSError, CacheError), locked(folder / _LOCK, ""):
            _remove_leftovers(folder, open_table(folder)[0].data)

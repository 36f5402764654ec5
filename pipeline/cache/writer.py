"""The one writer of a cache: parts as they are finished, then the index."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents, Index, VideoRow, read_index, write_index
from costl.pipeline.cache.lock import refuse_packed, take_lock
from costl.pipeline.cache.part import (
    parts_folder,
    read_row,
    write_part,
)
from costl.pipeline.cache.words import remove_others, words_folder, write_words
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CacheError, VideoError
from costl.pipeline.fingerprint import digest, explain_difference
from costl.pipeline.videos import readable

_INDEX_EVERY_S = 10.0


class CacheWriter:
    """The one writer of a cache, as a context manager; a part is safe on disk as soon as `store` returns.

    Entering takes the lock and removes what a killed run left half-written. From the first `write_index` on the index
    is published every few seconds, and once more on leaving, by an exception too. Raises CacheError when the cache on
    disk was made with another fingerprint (naming each field), when another process is writing, when the disk is full.
    One that is never entered writes parts alone: a worker's, whose client holds the lock and `adopt`s its rows.
    """

    def __init__(self, path: str | Path, contents: Contents, words: Mapping[str, Words]):
        self.path = Path(path)
        self.parts = parts_folder(self.path)
        self._contents, self._words, self._words_part = contents, words, ""
        self._digest = digest(contents.fingerprint)
        self._rows: dict[str, VideoRow] = {}
        self._id_of: dict[str, str] = {}  # by the id in small letters, the first of them
        self._lock = -1
        self._next_index_s = math.inf

    def __enter__(self) -> CacheWriter:
        check_fingerprint(self.path, self._contents.fingerprint)
        try:
            words_folder(self.path).mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self.parts / ".lock")
            for stray in [*self.parts.rglob(".*.tmp"), *self.path.parent.glob(f".{self.path.name}.*.tmp")]:
                stray.unlink()
        except OSError as error:
            raise hdf5.unwritable(self.parts, error) from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            # A second failure to write must not hide the first.
            with contextlib.suppress(CacheError) if error else contextlib.nullcontext():
                if self._next_index_s < math.inf:
                    self.write_index()
        finally:
            os.close(self._lock)

    def keep(self, video_id: str, content_hash: str) -> VideoRow | None:
        """Takes over the part of an earlier run if it is whole and of this very file; None says it must be made."""
        row = self._former(video_id)
        if row is None or row.content_hash != content_hash:
            return None
        self._add(row)
        return row

    def is_of_another(self, video_id: str, content_hash: str) -> bool:
        """Whether the part of an earlier run is whole, but of a file with other content."""
        row = self._former(video_id)
        return row is not None and row.content_hash != content_hash

    def _former(self, video_id: str) -> VideoRow | None:
        try:
            row = read_row(self.parts / f"{video_id}.h5", self._contents)
        except CacheError:
            return None
        return row if row.id == video_id else None

    def store(
        self,
        video_id: str,
        *,
        name: str = "",
        tokens: np.ndarray,
        times_s: np.ndarray,
        duration_s: float,
        content_hash: str,
        repaired: int = 0,
        decoder: str = "",
    ) -> VideoRow:
        """Publishes one video: tokens float16 [t 1+p c], or [t k 1+p c] of k layers, times_s float64 [t].

        `name` is the id unless given. Raises VideoError for tokens that cannot be kept in the form of this cache.
        """
        form, shape = self._contents.form, self._contents.token_shape
        layers = tokens.reshape(len(tokens), form.layers, *shape)
        assert tokens.dtype == np.float16 and tokens.shape[-2:] == shape, tokens.shape
        assert times_s.dtype == np.float64 and times_s.shape == tokens.shape[:1], times_s.shape
        said = VideoRow(
            id=video_id,
            status="ok",
            name=name or video_id,
            part=f"{video_id}.h5",
            clips=len(tokens),
            duration_s=float(duration_s),
            content_hash=content_hash,
            repaired=repaired,
            decoder=decoder,
        )
        part = self.parts / said.part
        self._refuse_twin(said)
        row = write_part(part, said, self._digest, form=form, tokens=layers, times_s=times_s)
        self._add(row)
        return row

    def adopt(self, row: VideoRow) -> VideoRow:
        """Takes over what another process found out. Raises CacheError unless the part it speaks of is here."""
        if row.ok and read_row(self.parts / row.part, self._contents) != row:
            raise CacheError(f"{self.parts / row.part}: not the part that was told of. Run costl extract again.")
        self._add(row)
        return row

    def note(self, video_id: str, *, status: str, reason: str, name: str = "", content_hash: str = "") -> VideoRow:
        """Notes that a video has no features (yet), and why."""
        row = VideoRow(video_id, status, readable(name or video_id), reason=readable(reason), content_hash=content_hash)
        self._add(row)
        return row

    def write_index(self) -> None:
        """Publishes the index as it stands, and before the first one the words."""
        started, folder = time.monotonic(), words_folder(self.path)
        first, self._words_part = not self._words_part, self._words_part or write_words(folder, self._words)
        rows = sorted(self._rows.values(), key=lambda row: row.id)
        write_index(self.path, Index(self._contents, rows, self._words_part))
        if first:  # the index on disk does not name them any more
            remove_others(folder, self._words_part)
        # A large index is written less often: never more than a twentieth of the time.
        self._next_index_s = time.monotonic() + max(_INDEX_EVERY_S, 20 * (time.monotonic() - started))

    def _refuse_twin(self, said: VideoRow) -> None:
        """Where a file system does not tell `a` from `A`, the second would take the place of the first."""
        twin = self._id_of.get(said.id.lower(), said.id)
        if twin != said.id and _same_file(self.parts / said.part, self.parts / f"{twin}.h5"):
            raise VideoError(
                f"{said.name}: differs from {twin} in capitals alone, which the file system of {self.parts} does not tell "
                "apart. Rename one of them, or put the cache on another disk with --out."
            )

    def _add(self, row: VideoRow) -> None:
        self._rows[row.id] = row
        self._id_of.setdefault(row.id.lower(), row.id)
        if time.monotonic() >= self._next_index_s:
            self.write_index()


def check_fingerprint(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raises CacheError naming every field in which the cache at `path` was made otherwise; a new path is fine."""
    if not path.exists():
        return
    refuse_packed(path)
    differences = explain_difference(read_index(path).contents.fingerprint, fingerprint)
    if differences:
        raise CacheError(
            f"{path} was made with other settings ({'; '.join(differences)}). "
            "Ask for the same, choose another --out, or delete it and its parts."
        )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False

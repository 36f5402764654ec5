"""The writer of a cache: parts as they are finished, then the index."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents, Index, VideoRow, write_index
from costl.pipeline.cache.lock import locked_cache, read_unpacked_index
from costl.pipeline.cache.part import parts_folder, read_row, temporary_files, write_part
from costl.pipeline.cache.words import remove_other_words, words_folder, write_words
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CacheError
from costl.pipeline.fingerprint import digest, explain_difference
from costl.pipeline.videos import printable

_INDEX_EVERY_S = 10.0


class CacheWriter:
    """The one writer of a cache, as a context manager; a part is safe on disk as soon as `store` returns.

    Entering it takes the lock and removes the temporary files of a killed run. From the first `write_index` on, the index
    is published every few seconds, and once more on leaving, also after an exception. Raises CacheError when the cache on
    disk was made with another fingerprint (naming each field), when another process is writing, or when the disk is full.

    A worker of a cluster never enters its writer and only writes parts: the client holds the lock and passes the rows of
    the workers to `adopt_row`.
    """

    def __init__(self, path: str | Path, contents: Contents, words: Mapping[str, SentenceTokens]):
        self.path = Path(path)
        self.parts = parts_folder(self.path)
        self.fps = contents.fps
        self._contents = contents
        self._words = words
        self._words_file = ""  # its name, once it is written
        self._digest = digest(contents.fingerprint)
        self._rows: dict[str, VideoRow] = {}
        self._lock = contextlib.ExitStack()
        self._next_index_s = math.inf

    def __enter__(self) -> CacheWriter:
        existing = check_fingerprint(self.path, self._contents.fingerprint)
        if existing is not None and existing.projection is not None:  # its parts may lack joint vectors
            self._contents = replace(self._contents, projection=existing.projection)
        self._lock.enter_context(locked_cache(self.path))
        try:
            for temporary in temporary_files(self.path):
                temporary.unlink()
        except OSError as error:
            raise hdf5.write_error(self.parts, error) from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            # A second failure to write must not hide the first.
            with contextlib.suppress(CacheError) if error else contextlib.nullcontext():
                if self._next_index_s < math.inf:
                    self.write_index()
        finally:
            self._lock.close()

    def reuse_if_unchanged(self, video_id: str, content_hash: str) -> VideoRow | None:
        """Adds the row of an earlier run's part and returns it; None unless the part is valid and of the same content."""
        row = self._existing_row(video_id)
        if row is None or row.content_hash != content_hash:
            return None
        self._add(row)
        return row

    def content_changed(self, video_id: str, content_hash: str) -> bool:
        """Whether an earlier run left a valid part that was made from a file with other content."""
        row = self._existing_row(video_id)
        return row is not None and row.content_hash != content_hash

    def store(
        self,
        video_id: str,
        *,
        name: str = "",
        tokens: np.ndarray,
        joint: np.ndarray | None = None,
        times_s: np.ndarray,
        duration_s: float,
        content_hash: str,
        picture_start_s: float = 0.0,
        repaired: int = 0,
        decoder: str = "",
    ) -> VideoRow:
        """Publishes one video: tokens float16 [t 1+p c], joint vectors float16 [t e], times_s float64 [t].

        `joint` is None where the joint space is unknown. `name` defaults to the id. Raises VideoError for tokens that cannot
        be stored in the token format of this cache.
        """
        assert tokens.dtype == np.float16 and tokens.shape[1:] == self._contents.token_shape, tokens.shape
        space = self._contents.joint
        if space.is_known and self._contents.projection is None:
            assert joint is not None and joint.dtype == np.float16 and joint.shape == (len(tokens), space.width)
        assert times_s.dtype == np.float64 and times_s.shape == tokens.shape[:1], times_s.shape
        row = VideoRow(
            id=video_id,
            status="ok",
            name=name or video_id,
            part=f"{video_id}.h5",
            clips=len(tokens),
            duration_s=float(duration_s),
            content_hash=content_hash,
            picture_start_s=float(picture_start_s),
            repaired=repaired,
            decoder=decoder,
        )
        dtype = self._contents.token_format.dtype
        path = self.parts / row.part
        row = write_part(path, row, self._digest, dtype=dtype, tokens=tokens, joint=joint, times_s=times_s)
        self._add(row)
        return row

    def adopt_row(self, row: VideoRow) -> VideoRow:
        """Adds a row that another process made. Raises CacheError unless the part that it describes is here."""
        if row.ok and read_row(self.parts / row.part, self._contents) != row:
            raise CacheError(
                f"{self.parts / row.part}: differs from the row that describes it. Run costl extract again."
            )
        self._add(row)
        return row

    def keep_row(self, row: VideoRow) -> None:
        """Adds a row of the index that this writer replaces. Its part is not read."""
        self._rows[row.id] = row

    def record_without_features(
        self, video_id: str, *, status: str, reason: str, name: str = "", content_hash: str = ""
    ) -> VideoRow:
        """Adds a row for a video that has no features, or not yet; `status` in one word, `reason` in a sentence."""
        row = VideoRow(
            video_id, status, printable(name or video_id), reason=printable(reason), content_hash=content_hash
        )
        self._add(row)
        return row

    def write_index(self) -> None:
        """Publishes the index with the rows so far; the first call writes the words of the queries before it."""
        started_s = time.monotonic()
        folder = words_folder(self.path)
        is_first = not self._words_file
        if is_first:
            self._words_file = write_words(folder, self._words)
        rows = sorted(self._rows.values(), key=lambda row: row.id)
        write_index(self.path, Index(self._contents, rows, self._words_file))
        if is_first:  # only now, since the old index named another file of words
            remove_other_words(folder, self._words_file)
        # A large index is written less often, so that it never takes more than a twentieth of the time.
        took_s = time.monotonic() - started_s
        self._next_index_s = time.monotonic() + max(_INDEX_EVERY_S, 20 * took_s)

    def _existing_row(self, video_id: str) -> VideoRow | None:
        try:
            row = read_row(self.parts / f"{video_id}.h5", self._contents)
        except CacheError:
            return None
        return row if row.id == video_id else None

    def _add(self, row: VideoRow) -> None:
        self._rows[row.id] = row
        if time.monotonic() >= self._next_index_s:
            self.write_index()


def check_fingerprint(path: Path, fingerprint: Mapping[str, Any]) -> Contents | None:
    """The contents of the cache at `path`; None where no cache exists.

    Raises CacheError for another fingerprint, naming every field that differs.
    """
    if not path.exists():
        return None
    contents = read_unpacked_index(path).contents
    differences = explain_difference(contents.fingerprint, fingerprint)
    if differences:
        raise CacheError(
            f"{path} was made with other settings ({'; '.join(differences)}). "
            "Ask for the same, choose another --out, or delete it and its parts."
        )
    return contents

"""Reads a cache: one HDF5 index, one HDF5 part for each video in a folder next to it, and the words of all queries.

feats.h5                        format, fingerprint, features, rows, settings, annotations/<split>, joint/*, words
feats.h5.parts/<id>.h5          tokens [t 1+p c] in the cache's token format, joint float16 [t e], times_s float64 [t],
                                and the row as attributes
feats.h5.parts/words/<hash>.h5  the words of every query; `words` in the index is the name of this file

A packed file (see pack_table.py) is read in the same way.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Index, VideoRow, absolute_weights, read_index
from costl.pipeline.cache.pack_table import NEXT_STEP, hash_ranges, packed_names
from costl.pipeline.cache.part import (
    ClipSelection,
    StoredTokens,
    check_part_fingerprint,
    locate_tokens,
    parts_folder,
    read_times,
)
from costl.pipeline.cache.words import WordTable, words_folder
from costl.pipeline.encode.types import SentenceTokens, unit_length
from costl.pipeline.errors import CacheError, suggest
from costl.pipeline.fingerprint import digest
from costl.pipeline.formats.files import as_path
from costl.pipeline.grid import Grid


class CacheReader:
    """A cache to read. It keeps no part open, so that threads and processes may share it.

    `rows` is every video with its status; `video_ids` are the names, as annotations use them, of the videos with features;
    `splits` are the annotated splits; `source` is the model and the weights from which the CLIP can be loaded again, where
    they are known. Raises CacheError for an index that is missing, foreign, damaged, of another format, or that names
    files outside of its folder.

    `index` is what the file holds, where that has been read already.
    """

    def __init__(self, path: str | Path, index: Index | None = None):
        self.path = as_path("path", path)
        index = index or read_index(self.path)
        self.format = index.format
        self.contents = index.contents
        self.rows = index.rows
        self.fps = self.contents.fps
        self.patch_grid = self.contents.patch_grid
        self.joint = self.contents.joint
        self.settings = dict(self.contents.settings)
        self.source = dict(self.contents.source)
        if "weights" in self.source:
            self.source["weights"] = absolute_weights(self.path.parent, self.source["weights"])
        self.fingerprint = dict(self.contents.fingerprint)
        self.digest = digest(self.fingerprint)
        self.splits = sorted(self.contents.annotations)
        self.video_ids = [row.name for row in self.rows if row.ok]
        self.pack_table = index.pack_table  # None unless the cache is packed
        self.words_file = index.words_file
        self.words_path = self.path if self.pack_table else words_folder(self.path) / self.words_file
        self._row_by_name = {row.name: row for row in self.rows}
        self._stored_tokens: dict[str, StoredTokens] = {}
        self._words: Mapping[str, SentenceTokens] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a memory map would copy everything that it shows.
        return vars(self) | {"_words": None}

    @property
    def videos(self) -> Path | None:
        """The folder that the videos were extracted from, if it is known; it may no longer exist."""
        return (self.path.parent / self.contents.videos).resolve() if self.contents.videos else None

    def grid(self, video_id: str) -> Grid:
        """The clips of this video and the seconds that they cover."""
        return Grid(fps=self.fps, duration_s=self.row(video_id).duration_s)

    def row(self, video_id: str) -> VideoRow:
        """The row of a video with features. Raises CacheError for a video that failed or is not in the cache."""
        row = self._row_by_name.get(video_id)
        if row is None:
            hint = f"{suggest(video_id, list(self._row_by_name))} Or extract it first." if self.rows else "Extract it first."
            raise CacheError(f"{self.path}: no video {video_id!r} among {len(self.rows)}. {hint}")
        if not row.ok:
            raise CacheError(f"{self.path}: video {video_id!r} has no features ({row.status}: {row.reason}).")
        return row

    def tokens(self, video_id: str, *, clips: ClipSelection = slice(None), patches: bool = True) -> np.ndarray:
        """A video's features, float16 [t 1+p c]: the frame token, then the patches; without `patches` [t 1 c].

        Only the requested values are read. Float16 is returned as a read-only memory map, unless `clips` is a list of
        indices; int8 is converted to float16.
        """
        return self._stored(video_id).read(clips, patches=patches)

    def joint_vectors(self, video_id: str, *, clips: ClipSelection = slice(None)) -> np.ndarray:
        """The frames in the joint space, float32 [t e], of length one: comparable with the sentences of `words`.

        In format 1 they follow from the frame tokens. Where the joint space is unknown, they are zeros.
        """
        stored, projection = self._stored(video_id), self.contents.projection
        if stored.joint is not None:
            return unit_length(stored.joint.array()[clips if isinstance(clips, slice) else list(clips)])
        frame_tokens = stored.read(clips, patches=False)[:, 0]
        if projection is not None:
            return projection.project(frame_tokens)
        return np.zeros((len(frame_tokens), self.joint.width), np.float32)

    def _stored(self, video_id: str) -> StoredTokens:
        # The location of the bytes is looked up once. Reading through HDF5 is half as fast and blocks other threads.
        if video_id not in self._stored_tokens:
            with self._open_part(video_id) as part:
                self._stored_tokens[video_id] = locate_tokens(part, self.row(video_id).clips, self.contents)
        return self._stored_tokens[video_id]

    def times_s(self, video_id: str) -> np.ndarray:
        """The time at which each clip's frame first appears on screen, seconds, float64 [t]."""
        with self._open_part(video_id) as part:
            return read_times(part, self.row(video_id).clips)

    def words(self, query: str) -> SentenceTokens:
        """The tokens of an annotated query. Raises CacheError for a query that was not annotated at extraction."""
        table = self._words if self._words is not None else self.word_table()
        if query not in table:
            raise CacheError(
                f"{self.path}: the query {query!r} was not extracted. Add its annotation and run costl extract."
            )
        return table[query]

    def word_table(self) -> WordTable:
        """The tokens of every query, by query; the file is opened at the first call."""
        if not isinstance(self._words, WordTable):
            self._words = WordTable(self.words_path, self._group(f"words/{self.words_file}"))
        return self._words

    def with_words(self, words: Mapping[str, SentenceTokens]) -> CacheReader:
        """The same features with the tokens of these queries instead of those that are stored."""
        other = copy.copy(self)
        other._words = words
        return other

    def annotations(self, split: str) -> str:
        """The JSONL text of a split. Raises CacheError naming the existing splits."""
        if split not in self.contents.annotations:
            raise CacheError(f"{self.path}: no split {split!r}, only {', '.join(self.splits) or 'none'}.")
        return self.contents.annotations[split]

    def array_locations(self, video_id: str) -> dict[str, hdf5.Location]:
        """Where every array of a video is stored, by its name in the part."""
        with self._open_part(video_id) as part:
            return hdf5.locate_arrays(part)

    def part_path(self, video_id: str) -> Path:
        """The file that holds a video's features: its part, or the packed file."""
        if self.pack_table:
            return self.path
        return parts_folder(self.path) / self.row(video_id).part

    def verify(self, video_id: str, *, quick: bool = False) -> None:
        """Reads a video's part in full, or with `quick` only its size and first bytes.

        Raises CacheError when the part is damaged, holds non-finite values, or is not the one in the index.
        """
        path = self.part_path(video_id)
        row = self.row(video_id)
        self._verify_file(row.part, path, quick=quick)
        if quick:
            return
        with self._open_part(video_id) as part:
            tokens = locate_tokens(part, row.clips, self.contents)
            times_s = read_times(part, row.clips)
        next_step = NEXT_STEP if self.pack_table else "Delete it and run costl extract again."
        if tokens.checksum(times_s) != row.checksum:
            raise CacheError(f"{path}: its content has changed since it was written ({row.part}). {next_step}")
        bad_clip = tokens.first_nonfinite_clip()
        if bad_clip is not None:  # from another program: extraction and import refuse such values
            raise CacheError(f"{path}: clip {bad_clip} of {video_id!r} holds non-finite values. {next_step}")

    def verify_words(self, *, quick: bool = False) -> None:
        """The same for the words of all queries."""
        self._verify_file(f"words/{self.words_file}", self.words_path, quick=quick)
        if not quick:
            self.word_table().verify(self.words_file)

    def _verify_file(self, name: str, path: Path, *, quick: bool) -> None:
        """Checks what has to be checked before the arrays of a file are read."""
        if self.pack_table:
            entry = self.pack_table.entry(name)  # refuses arrays outside of the file
            if not quick and hash_ranges(path, entry.shell, packed=True) != entry.shell_sha256:
                raise CacheError(f"{path}: what it holds of {name} has changed since it was packed. {NEXT_STEP}")
        elif quick:
            hdf5.check_header(path)

    @contextlib.contextmanager
    def _open_part(self, video_id: str) -> Iterator[Any]:
        path = self.part_path(video_id)
        if not self.pack_table:
            hdf5.refuse_link(path)
        with hdf5.open_file(path, self._group(self.row(video_id).part)) as part:
            check_part_fingerprint(part, self.digest)
            yield part

    def _group(self, name: str) -> str:
        """The group of a file in the packed cache; empty where it is a file of its own."""
        return packed_names(name)[0] if self.pack_table else ""

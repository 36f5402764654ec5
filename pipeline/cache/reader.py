"""The feature cache: one HDF5 index, one HDF5 part per video beside it, and the checks that make both trustworthy.

feats.h5                        format, fingerprint, features, rows, settings, annotations/<split>, joint/*, words
feats.h5.parts/<id>.h5          tokens [t 1+p c] in the form asked for, times_s float64 [t], as attributes what its row says
feats.h5.parts/words/<hash>.h5  the words of every query; `words` in the index is the name of this file

A packed file (see packed.py) is read in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import VideoRow, read_index, seen_from
from costl.pipeline.cache.pack_table import NEXT_STEP, check_entry
from costl.pipeline.cache.part import (
    Clips,
    Stored,
    check_part,
    checksum_of,
    first_not_finite,
    layers_in,
    part_bytes,
    parts_folder,
    times_in,
    tokens_in,
)
from costl.pipeline.cache.words import WordTable, words_folder
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CacheError
from costl.pipeline.fingerprint import digest
from costl.pipeline.grid import Grid


class CacheReader:
    """A cache to read; however many parts it has, it holds none of them open, so that threads and processes may share it.

    `rows` every video and what became of it; `video_ids` those with features, by the names annotations use; `splits`
    the annotated ones; `source` the model and weights by which its CLIP can be loaded again, where that is known. Raises
    CacheError for an index that is missing, foreign, damaged, of another format, or that points out of its folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        index = read_index(self.path)
        self.contents, self.rows = index.contents, index.rows
        self.fps = self.contents.fps
        self.patch_grid = self.contents.patch_grid
        self.joint = self.contents.joint
        self.settings = dict(self.contents.settings)
        self.source = dict(self.contents.source)
        if "weights" in self.source:
            self.source["weights"] = seen_from(self.path.parent, self.source["weights"])
        self.fingerprint = dict(self.contents.fingerprint)
        self.digest = digest(self.fingerprint)
        self.splits = sorted(self.contents.annotations)
        self._row_of = {row.name: row for row in self.rows}
        self.video_ids = [row.name for row in self.rows if row.ok]
        self._tokens_at: dict[tuple[str, int], Stored] = {}
        self.words_path = words_folder(self.path) / index.words
        self._words: WordTable | None = None
        self.table, self.words_name = index.table, index.words  # None where the parts lie beside the index
        if self.table:
            self.words_path = self.path

    def grid(self, video_id: str) -> Grid:
        """Which clip stands for which seconds of this video."""
        return Grid(fps=self.fps, duration_s=self.row(video_id).duration_s)

    def row(self, video_id: str) -> VideoRow:
        """The row of a video with features. Raises CacheError for one that failed or is not here."""
        row = self._row_of.get(video_id)
        if row is None:
            raise CacheError(f"{self.path}: no video {video_id!r} among {len(self.rows)}. Extract it first.")
        if not row.ok:
            raise CacheError(f"{self.path}: video {video_id!r} has no features ({row.status}: {row.reason}).")
        return row

    def tokens(self, video_id: str, *, clips: Clips = slice(None), patches: bool = True, layer: int = -1) -> np.ndarray:
        """A video's features, float16 [t 1+p c]: the frame's token, then the patches; without `patches` [t 1 c].

        Nothing but what is asked for is read. Float16 comes as a read-only memory map, unless `clips` is a list of some;
        int8 is computed back. `layer` -1 is CLIP's last block, -2 the one before. Raises CacheError for a layer
        that was not kept.
        """
        # Which bytes they are is looked up once; HDF5 itself would halve the speed and keep threads apart.
        if (video_id, layer) not in self._tokens_at:
            if not -self.contents.form.layers <= layer <= -1:
                kept = self.contents.form.layers
                raise CacheError(
                    f"{self.path}: no layer {layer}, the last {kept} are kept. Extract with more --layers."
                )
            with self._part(video_id) as file:
                self._tokens_at[video_id, layer] = tokens_in(file, self.row(video_id).clips, self.contents, layer)
        return self._tokens_at[video_id, layer].read(clips, patches=patches)

    def times_s(self, video_id: str) -> np.ndarray:
        """When each clip's frame was on screen first, seconds, float64 [t]."""
        with self._part(video_id) as file:
            return times_in(file, self.row(video_id).clips)

    def words(self, query: str) -> Words:
        """The words of a query that was annotated when the cache was made. Raises CacheError for another one."""
        table = self.word_table()
        if query not in table:
            raise CacheError(
                f"{self.path}: the query {query!r} was not extracted. Add its annotation and run costl extract."
            )
        return table[query]

    def all_words(self) -> Mapping[str, Words]:
        """The words of every query, by query; read when they are asked for."""
        return self.word_table()

    def annotations(self, split: str) -> str:
        """The JSONL text of a split. Raises CacheError naming the splits there are."""
        if split not in self.contents.annotations:
            raise CacheError(f"{self.path}: no split {split!r}, only {', '.join(self.splits) or 'none'}.")
        return self.contents.annotations[split]

    def arrays(self, video_id: str) -> dict[str, hdf5.Location]:
        """Where every array of a video lies, by its name in the part."""
        with self._part(video_id) as part:
            return dict(part.arrays) if self.table else hdf5.arrays_in(part)

    def part_path(self, video_id: str) -> Path:
        """The file that holds a video's features; a packed file holds those of all."""
        if self.table:
            return self.path
        return parts_folder(self.path) / self.row(video_id).part

    def verify(self, video_id: str, *, quick: bool = False) -> None:
        """Reads a video's part in full, or with `quick` its size and first bytes alone.

        Raises CacheError when it is damaged or not the one that was indexed.
        """
        path, row = self.part_path(video_id), self.row(video_id)
        if self.table:
            entry = self.table.entry(row.part)  # refused unless all of it lies inside the file
            if quick:
                return
            check_entry(path, entry)
        if quick:
            hdf5.check_header(path, least=part_bytes(row, self.contents))
            return
        with self._part(video_id) as file:
            layers, times_s = layers_in(file, row.clips, self.contents), times_in(file, row.clips)
        then = NEXT_STEP if self.table else "Delete it and run costl extract again."
        if checksum_of(layers, times_s) != row.checksum:
            what = f"{path}: {row.part} in it" if self.table else f"{path}: its content"
            raise CacheError(f"{what} has changed since it was written. {then}")
        bad = next((clip for clip in map(first_not_finite, layers) if clip is not None), None)
        if bad is not None:  # whoever wrote it: no CLIP of ours does
            raise CacheError(f"{path}: clip {bad} of {video_id!r} holds values that are no finite numbers. {then}")

    def verify_words(self, *, quick: bool = False) -> None:
        """The same for the words of all queries."""
        if self.table:
            entry = self.table.entry(f"words/{self.words_name}")
            if not quick:
                check_entry(self.path, entry)
        elif quick:
            hdf5.check_header(self.words_path)
        if not quick:
            self.word_table().verify(self.words_name)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would travel to another process as a copy of what it shows.
        return vars(self) | {"_words": None}

    def word_table(self) -> WordTable:
        """The words of all queries, by query; nothing of it is read before it is asked for."""
        if self._words is None:
            listed = self.table.entry(f"words/{self.words_name}").listed if self.table else None
            self._words = WordTable(self.words_path, listed)
        return self._words

    @property
    def videos(self) -> Path | None:
        """The folder that the videos were extracted from, if it is known; nobody promises that they are still there."""
        return (self.path.parent / self.contents.videos).resolve() if self.contents.videos else None

    @contextlib.contextmanager
    def _part(self, video_id: str) -> Iterator[Any]:
        if self.table:
            listed = self.table.entry(self.row(video_id).part).listed
            check_part(listed, self.digest)
            yield listed
            return
        path = self.part_path(video_id)
        hdf5.refuse_link(path)
        with hdf5.reading(path) as file:
            check_part(file, self.digest)
            yield file

"""The feature cache: one HDF5 index, one HDF5 part per video beside it, and the checks that make both trustworthy.

feats.h5                        format, fingerprint, features, rows, settings, annotations/<split>, joint/*, words
feats.h5.parts/<id>.h5          tokens [t 1+p c] in the form asked for, times_s float64 [t], as attributes what its row says
feats.h5.parts/words/<hash>.h5  the words of every query; `words` in the index is the name of this file

A packed file (see packed.py) is read in the same way.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import hdf5
from pipeline.errors import CacheError, VideoError
from pipeline.features import Joint, Words
from pipeline.fingerprint import digest, explain_difference
from pipeline.grid import Grid
from pipeline.index import Contents, Index, VideoRow, is_packed, read_index, seen_from, write_index
from pipeline.packed import NEXT_STEP, check_entry
from pipeline.parts import (
    Clips,
    Stored,
    check_part,
    checksum_of,
    first_not_finite,
    layers_in,
    part_bytes,
    parts_folder,
    read_row,
    times_in,
    tokens_in,
    write_part,
)
from pipeline.videos import readable
from pipeline.words import WordTable, remove_others, write_words

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second writer away, but files are still published whole
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CacheReader",
    "CacheWriter",
    "Contents",
    "Joint",
    "VideoRow",
    "Words",
    "check_fingerprint",
    "known_words",
    "locked",
    "parts_folder",
    "refuse_if_busy",
]

_INDEX_EVERY_S = 10.0


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
            self._lock = _lock(self.parts / ".lock")
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


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def words_folder(path: Path) -> Path:
    """Where the words of the cache `path` lie."""
    return parts_folder(path) / "words"


def known_words(path: Path) -> dict[str, Words]:
    """The words that an earlier run left in the cache at `path`; none where there is no cache, or they are damaged."""
    if not path.exists():
        return {}
    try:
        table = WordTable(words_folder(path) / read_index(path).words)
        table.verify()
        return dict(table)
    except CacheError:
        return {}


def refuse_if_busy(path: Path) -> None:
    """Raises CacheError at once when another process is writing the cache at `path`, or nobody may."""
    _refuse_packed(path)
    if parts_folder(path).is_dir():
        with locked(path):
            pass


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps every writer away from the cache at `path`. Raises CacheError when one is there, or it cannot be written."""
    try:
        held = _lock(parts_folder(path) / ".lock")
    except OSError as error:
        raise hdf5.unwritable(parts_folder(path), error) from error
    try:
        yield
    finally:
        os.close(held)


def check_fingerprint(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raises CacheError naming every field in which the cache at `path` was made otherwise; a new path is fine."""
    if not path.exists():
        return
    _refuse_packed(path)
    differences = explain_difference(read_index(path).contents.fingerprint, fingerprint)
    if differences:
        raise CacheError(
            f"{path} was made with other settings ({'; '.join(differences)}). "
            "Ask for the same, choose another --out, or delete it and its parts."
        )


def _refuse_packed(path: Path) -> None:
    if path.is_file() and is_packed(path):
        raise CacheError(
            f"{path}: one packed file, which is complete and cannot be added to. Unpack it first: "
            f"costl unpack {path} --out feats.h5"
        )


def _lock(path: Path) -> int:
    # Held by the kernel for as long as this process lives, however it ends.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CacheError(
            f"{path.parent}: another costl extract is writing here. Wait for it, or choose another --out; processes that "
            "share a folder by --shard each need one of their own (costl merge joins them)."
        ) from error
    return descriptor

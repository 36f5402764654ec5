"""Finds the files next to a cache that no longer belong to it, by name and content, and deletes them on request."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Index, read_index
from costl.pipeline.cache.inspect import format_bytes
from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.errors import CacheError

_TEMPORARY = re.compile(r"\..+\.h5\.\d+(-[0-9a-f]+)?\.tmp")  # as hdf5.atomic_path names unfinished files
_WORDS = re.compile(r"[0-9a-f]{64}\.h5")


@dataclass(frozen=True)
class Leftover:
    """A file that is not needed, the reason, and its size."""

    path: Path
    why: str
    size_bytes: int


@dataclass(frozen=True)
class Leftovers:
    """The files that are not needed, and whether they were `deleted`; `foreign` files stay, since they may not be ours."""

    cache: Path
    files: tuple[Leftover, ...] = ()
    deleted: bool = False
    foreign: tuple[Path, ...] = field(default=())
    exit_code = 0

    @property
    def size_bytes(self) -> int:
        """Of all files that are not needed."""
        return sum(leftover.size_bytes for leftover in self.files)

    def lines(self) -> list[str]:
        """A line for each file, then the sum."""
        lines = [f"{format_bytes(leftover.size_bytes):>9}  {leftover.path}  {leftover.why}" for leftover in self.files]
        action = "deleted" if self.deleted else "to delete"
        files = "file" if len(self.files) == 1 else "files"
        return [*lines, f"{len(self.files)} {files} {action}, {format_bytes(self.size_bytes)}."]

    def data(self) -> dict[str, Any]:
        """Every file with its reason and size."""
        return {
            "cache": str(self.cache),
            "deleted": self.deleted,
            "size_bytes": self.size_bytes,
            "foreign": [str(path) for path in self.foreign],
            "found": [vars(leftover) | {"path": str(leftover.path)} for leftover in self.files],
        }

    def messages(self) -> list[str]:
        """The files that stay, and how to delete the others."""
        messages = [f"not deleted, because it may not be a leftover: {path}" for path in self.foreign]
        if self.files and not self.deleted:
            messages.append(f"Nothing was deleted. To delete: costl cache gc {self.cache} --delete")
        return messages


def collect_garbage(path: Path, *, delete: bool = False) -> Leftovers:
    """Lists, and with `delete` removes, the files next to the cache at `path` that no longer belong to it.

    These are: parts of videos that are no longer in the index, words that the index does not name, and temporary files of a
    killed run. A part that is newer than the index stays, since the index may not list it yet, and so does every file that
    is not known to be ours by name and content. Raises CacheError when the index is damaged, when a run is writing, or when
    a file cannot be removed.
    """
    index = read_index(path)
    parts = parts_folder(path)
    with locked_cache(path) if parts.is_dir() else contextlib.nullcontext():
        index = read_index(path)  # again, since a run may have written it before the lock was taken
        foreign: list[Path] = []
        files = tuple(sorted(_leftovers(path, index, foreign), key=lambda leftover: leftover.path))
        if delete:
            for leftover in files:
                _remove(leftover.path)
    return Leftovers(path, files, delete, tuple(sorted(foreign)))


def _leftovers(path: Path, index: Index, foreign: list[Path]) -> Iterator[Leftover]:
    """Every file that is not needed; files that may not be ours are added to `foreign`."""
    parts = parts_folder(path)
    yield from _half_written(path, [parts, parts / "words"])
    if index.pack_table:  # everything is in the packed file, so that no part next to it can be ours
        return
    # A row without features may still have a part, which the next run uses again.
    named_parts = {f"{row.id}.h5" for row in index.rows}
    index_time_s = path.stat().st_mtime
    for part in _files(parts):
        if part.suffix != ".h5" or part.name in named_parts:
            continue
        if part.stat().st_mtime > index_time_s or not _is_part(part):
            foreign.append(part)
        else:
            yield Leftover(part, "no row of the index names it", part.stat().st_size)
    for words in _files(parts / "words"):
        if words.name != index.words_file and words.suffix == ".h5":
            if _WORDS.fullmatch(words.name) and _is_words(words):
                yield Leftover(words, "the index names other words", words.stat().st_size)
            else:
                foreign.append(words)


def _half_written(path: Path, folders: list[Path]) -> Iterator[Leftover]:
    files = [file for folder in folders for file in _files(folder) if _TEMPORARY.fullmatch(file.name)]
    # Other files lie next to the index: only temporary files with its own name are ours.
    of_index = re.compile(rf"\.{re.escape(path.name)}\.\d+(-[0-9a-f]+)?\.tmp")
    files += [file for file in _files(path.parent) if of_index.fullmatch(file.name)]
    for file in files:
        yield Leftover(file, "half-written by a run that was killed", file.stat().st_size)


def _files(folder: Path) -> list[Path]:
    """The files of a folder, sorted, without links; empty for a link to a folder."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.is_symlink())


def _is_part(path: Path) -> bool:
    try:
        with hdf5.open_file(path) as file:
            for name in ("fingerprint", "content_hash", "checksum"):
                hdf5.get_attribute(file, name, str)
            return f"{hdf5.get_attribute(file, 'video_id', str)}.h5" == path.name
    except CacheError:
        return False


def _is_words(path: Path) -> bool:
    try:
        with hdf5.open_file(path) as file:
            queries = json.loads(hdf5.get_text(file, "queries"))
            return isinstance(queries, list) and hdf5.has_name(file, "sentences")
    except CacheError:
        return False


def _remove(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CacheError(f"{path}: cannot be deleted ({error.strerror}). Check permissions and try again.") from error

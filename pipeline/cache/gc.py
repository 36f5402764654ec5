"""What lies beside a cache and belongs to it no more: found by name and content, and removed only when asked."""

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
from costl.pipeline.cache.inspect import size_text
from costl.pipeline.cache.lock import locked
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.errors import CacheError

_ASIDE = re.compile(r"\..+\.h5\.\d+(-[0-9a-f]+)?\.tmp")  # as hdf5.publishing names what is not finished
_WORDS = re.compile(r"[0-9a-f]{64}\.h5")


@dataclass(frozen=True)
class Leftover:
    """A file that nothing needs, why, and its size."""

    path: Path
    why: str
    size_bytes: int


@dataclass(frozen=True)
class Leftovers:
    """What was `found`, whether it was `deleted`, and what was left alone because it is not known to be ours (`foreign`)."""

    cache: Path
    found: tuple[Leftover, ...] = ()
    deleted: bool = False
    foreign: tuple[Path, ...] = field(default=())
    exit_code = 0

    @property
    def size_bytes(self) -> int:
        """Of all that was found."""
        return sum(leftover.size_bytes for leftover in self.found)

    def lines(self) -> list[str]:
        """A line for each file, then the sum."""
        lines = [f"{size_text(one.size_bytes):>9}  {one.path}  {one.why}" for one in self.found]
        what = "deleted" if self.deleted else "to delete"
        files = "file" if len(self.found) == 1 else "files"
        return [*lines, f"{len(self.found)} {files} {what}, {size_text(self.size_bytes)}."]

    def data(self) -> dict[str, Any]:
        """Every file with its reason and size."""
        return {
            "cache": str(self.cache),
            "deleted": self.deleted,
            "size_bytes": self.size_bytes,
            "foreign": [str(path) for path in self.foreign],
            "found": [vars(leftover) | {"path": str(leftover.path)} for leftover in self.found],
        }

    def messages(self) -> list[str]:
        """Which files stay, and how to delete the others."""
        messages = [f"not deleted, because it may not be a leftover: {path}" for path in self.foreign]
        if self.found and not self.deleted:
            messages.append(f"Nothing was deleted. To delete: costl cache gc {self.cache} --delete")
        return messages


def collect(path: Path, *, delete: bool = False) -> Leftovers:
    """Lists, and with `delete` removes, what no row of the cache at `path` speaks of.

    That is: parts of videos that are not in the index any more, words that it does not name, and what a killed run left
    half-written. A part that is newer than the index stays (the index may not know of it yet), and so does every file that
    is not known to be ours by name and by content. Raises CacheError when the index is damaged, when a run is writing, and
    when a file cannot be removed.
    """
    index = read_index(path)
    beside = parts_folder(path)
    with locked(path) if beside.is_dir() else contextlib.nullcontext():
        index = read_index(path)  # as the run that was waited for left it
        foreign: list[Path] = []
        found = tuple(sorted(_leftovers(path, index, foreign), key=lambda one: one.path))
        for leftover in found if delete else ():
            _remove(leftover.path)
    return Leftovers(path, found, delete, tuple(sorted(foreign)))


def _leftovers(path: Path, index: Index, foreign: list[Path]) -> Iterator[Leftover]:
    beside = parts_folder(path)
    yield from _half_written(path, [beside, beside / "words"])
    if index.table:  # all is in the one file: what lies beside it is somebody else's
        return
    # A row without features may yet keep its part: a killed run finds it again.
    spoken_of = {f"{row.id}.h5" for row in index.rows}
    written_s = path.stat().st_mtime
    for part in _files(beside):
        if part.suffix != ".h5" or part.name in spoken_of:
            continue
        if part.stat().st_mtime > written_s or not _is_part(part):
            foreign.append(part)
        else:
            yield Leftover(part, "no row of the index speaks of it", part.stat().st_size)
    for words in _files(beside / "words"):
        if words.name != index.words and words.suffix == ".h5":
            if _WORDS.fullmatch(words.name) and _is_words(words):
                yield Leftover(words, "the index names other words", words.stat().st_size)
            else:
                foreign.append(words)


def _half_written(path: Path, folders: list[Path]) -> Iterator[Leftover]:
    ours = [file for folder in folders for file in _files(folder) if _ASIDE.fullmatch(file.name)]
    # Beside the index lie other people's files: only those called after it are its own.
    called_after = re.compile(rf"\.{re.escape(path.name)}\.\d+(-[0-9a-f]+)?\.tmp")
    ours += [file for file in _files(path.parent) if called_after.fullmatch(file.name)]
    for file in ours:
        yield Leftover(file, "half-written by a run that was killed", file.stat().st_size)


def _files(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and not file.is_symlink())


def _is_part(path: Path) -> bool:
    try:
        with hdf5.reading(path) as file:
            for name in ("fingerprint", "content_hash", "checksum"):
                hdf5.get_attribute(file, name, str)
            return f"{hdf5.get_attribute(file, 'video_id', str)}.h5" == path.name
    except CacheError:
        return False


def _is_words(path: Path) -> bool:
    try:
        with hdf5.reading(path) as file:
            return isinstance(json.loads(hdf5.get_text(file, "queries")), list) and hdf5.has(file, "sentences")
    except CacheError:
        return False


def _remove(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CacheError(f"{path}: cannot be deleted ({error.strerror}). Check permissions and try again.") from error

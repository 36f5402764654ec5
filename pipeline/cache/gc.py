"""Finds the files of a cache that no longer belong to it, by name and content, and deletes them on request."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Index, read_index
from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.part import parts_folder, read_attributes, temporary_files
from costl.pipeline.errors import CacheError


@dataclass(frozen=True)
class Leftovers:
    """The `files` that a cache no longer needs, each with the reason, their size, and whether they were `deleted`."""

    cache: Path
    files: Mapping[Path, str]
    size_bytes: int
    deleted: bool
    exit_code = 0

    def lines(self) -> list[str]:
        """A line for each file, then the sum."""
        action = "deleted" if self.deleted else "to delete"
        total = f"{len(self.files)} files {action}, {self.size_bytes / 1e6:.1f} MB."
        return [*(f"{path}  {reason}" for path, reason in self.files.items()), total]

    def data(self) -> dict[str, Any]:
        """All fields."""
        return vars(self) | {
            "cache": str(self.cache),
            "files": {str(path): reason for path, reason in self.files.items()},
        }

    def messages(self) -> list[str]:
        """How to delete the files."""
        if not self.files or self.deleted:
            return []
        return [f"Nothing was deleted. To delete: costl cache gc {self.cache} --delete"]


def collect_garbage(path: Path, *, delete: bool = False) -> Leftovers:
    """Lists, and with `delete` removes, the files of the cache at `path` that no longer belong to it.

    These are: parts of videos that are no longer in the index, words that the index does not name, and temporary files of a
    killed run. A part that is newer than the index stays, since the index may not list it yet, and so does every file that
    is not known to be ours by name and content. Raises CacheError when the index is damaged, when a run is writing, or when
    a file cannot be removed.
    """
    with locked_cache(path) if parts_folder(path).is_dir() else contextlib.nullcontext():
        files = _leftovers(path, read_index(path))
        size_bytes = sum(file.stat().st_size for file in files)
        for file in files if delete else ():
            try:
                file.unlink()
            except OSError as error:
                raise hdf5.write_error(file, error) from error
    return Leftovers(path, dict(sorted(files.items())), size_bytes, delete)


def _leftovers(path: Path, index: Index) -> dict[Path, str]:
    files = dict.fromkeys(temporary_files(path), "half-written by a run that was killed")
    if index.pack_table:  # everything is in the packed file, so that no part next to it can be ours
        return files
    parts = parts_folder(path)
    # A row without features may still have a part, which the next run uses again.
    named_parts = {f"{row.id}.h5" for row in index.rows}
    index_time_s = path.stat().st_mtime
    for part in parts.glob("*.h5"):
        is_old = part.name not in named_parts and not part.is_symlink() and part.stat().st_mtime <= index_time_s
        if is_old and _is_part(part):
            files[part] = "no row of the index names it"
    for words in (parts / "words").glob("*.h5"):
        is_ours = re.fullmatch(r"[0-9a-f]{64}\.h5", words.name) and not words.is_symlink()
        if is_ours and words.name != index.words_file:
            files[words] = "the index names other words"
    return files


def _is_part(path: Path) -> bool:
    try:
        with hdf5.open_file(path) as file:
            return f"{read_attributes(file)['video_id']}.h5" == path.name
    except CacheError:
        return False

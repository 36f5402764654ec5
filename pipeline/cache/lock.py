"""The lock that allows one writer for each cache, and the refusals before it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Index, read_index
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.errors import CacheError
from costl.pipeline.formats.files import locked


@contextlib.contextmanager
def locked_cache(path: Path) -> Iterator[None]:
    """Makes the folders of the cache at `path` and locks them against other writers.

    Raises CacheError when another process holds the lock, or when the folder of parts cannot be written.
    """
    folder = parts_folder(path)
    message = (
        f"{folder}: another costl extract is writing here. Wait for it, or choose another --out. Processes that share a "
        "folder by --shard each need one of their own (costl cache merge joins them)."
    )
    with contextlib.ExitStack() as stack:
        try:
            (folder / "words").mkdir(parents=True, exist_ok=True)
            # A file in the folder, since some network disks cannot lock folders.
            stack.enter_context(locked(folder / ".lock", message))
        except OSError as error:
            raise hdf5.write_error(folder, error) from error
        yield


def refuse_if_busy(path: Path) -> None:
    """Raises CacheError when a cache at `path` is damaged or packed, cannot be written, or has another writer."""
    if path.exists():
        read_unpacked_index(path)
    refuse_if_locked(path)


def refuse_if_locked(path: Path) -> None:
    """Raises CacheError when a cache at `path` cannot be written, or has another writer."""
    if parts_folder(path).is_dir():
        with locked_cache(path):
            pass


def read_unpacked_index(path: Path) -> Index:
    """The index at `path`. Raises CacheError as `read_index` does, and for a packed cache, to which nothing can be added."""
    index = read_index(path)
    if index.pack_table:
        raise CacheError(
            f"{path}: one packed file, which is complete and cannot be added to. Unpack it first: "
            f"costl cache unpack {path} --out feats.h5"
        )
    return index

"""The lock that allows one writer for each cache, and the refusals before it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import is_packed
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.errors import CacheError
from costl.pipeline.formats.files import lock_or_refuse


@contextlib.contextmanager
def locked_cache(path: Path) -> Iterator[None]:
    """Locks the cache at `path` against other writers.

    Raises CacheError when another process holds the lock, or when the folder of parts cannot be written.
    """
    try:
        descriptor = acquire_lock(path)
    except OSError as error:
        raise hdf5.write_error(parts_folder(path), error) from error
    try:
        yield
    finally:
        os.close(descriptor)


def acquire_lock(path: Path) -> int:
    """Locks the cache at `path` until the returned file descriptor is closed or the process ends.

    The folder of parts must exist. Raises CacheError when another process holds the lock, OSError when the lock file
    cannot be written.
    """
    folder = parts_folder(path)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_or_refuse(
            descriptor,
            f"{folder}: another costl extract is writing here. Wait for it, or choose another --out; processes that "
            "share a folder by --shard each need one of their own (costl cache merge joins them).",
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def refuse_if_busy(path: Path) -> None:
    """Raises CacheError at once when the cache at `path` is packed, cannot be written, or has another writer."""
    refuse_packed(path)
    if parts_folder(path).is_dir():
        with locked_cache(path):
            pass


def refuse_packed(path: Path) -> None:
    """Raises CacheError for a packed cache, to which nothing can be added."""
    if path.is_file() and is_packed(path):
        raise CacheError(
            f"{path}: one packed file, which is complete and cannot be added to. Unpack it first: "
            f"costl cache unpack {path} --out feats.h5"
        )

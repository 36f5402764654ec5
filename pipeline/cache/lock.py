"""One writer for each cache: the lock, and the refusals before it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import is_packed
from costl.pipeline.cache.part import (
    parts_folder,
)
from costl.pipeline.errors import CacheError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second writer away, but files are still published whole
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps every writer away from the cache at `path`. Raises CacheError when one is there, or it cannot be written."""
    try:
        held = take_lock(parts_folder(path) / ".lock")
    except OSError as error:
        raise hdf5.unwritable(parts_folder(path), error) from error
    try:
        yield
    finally:
        os.close(held)


def refuse_if_busy(path: Path) -> None:
    """Raises CacheError at once when another process is writing the cache at `path`, or nobody may."""
    refuse_packed(path)
    if parts_folder(path).is_dir():
        with locked(path):
            pass


def refuse_packed(path: Path) -> None:
    if path.is_file() and is_packed(path):
        raise CacheError(
            f"{path}: one packed file, which is complete and cannot be added to. Unpack it first: "
            f"costl cache unpack {path} --out feats.h5"
        )


def take_lock(path: Path) -> int:
    # Held by the kernel for as long as this process lives, however it ends.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CacheError(
            f"{path.parent}: another costl extract is writing here. Wait for it, or choose another --out; processes that "
            "share a folder by --shard each need one of their own (costl cache merge joins them)."
        ) from error
    return descriptor

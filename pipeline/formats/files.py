"""Publishing a file: nothing half-written ever has its final name, and no two processes write one folder at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from costl.pipeline.errors import CacheError, CostlError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second writer away, but files are still published whole
    fcntl = None  # type: ignore[assignment]


def publish(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, force it to the disk, then rename: a crash leaves the old file or the new one.

    Folders on the way are made. Raises CostlError when the disk refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise CostlError(
            f"{path}: cannot be written ({error.strerror}). Free space or choose another folder."
        ) from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps every other training away from `folder`, which must exist. Raises CacheError when one is at work there."""
    if fcntl is None:
        yield
        return
    # Of the folder itself: no file is left behind, and the kernel lets go of it however this process ends.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path, *names: str) -> None:
    """Removes what a process that was killed has left half-written of the files of these names."""
    for name in names:
        for stray in folder.glob(f".{name}.*.part"):
            with contextlib.suppress(OSError):  # it is in nobody's way
                stray.unlink()


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to the disk."""
    # The rename itself lives in the folder. Windows cannot open one, and needs no help.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CacheError(
            f"{folder}: another costl train is writing here. Wait for it, or choose another --out."
        ) from error
    except OSError:  # some network disks lock no folders
        return

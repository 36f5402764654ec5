"""Publishing a file whole, and one lock for each folder that is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from costl.pipeline.errors import CacheError, CostlError

try:
    import fcntl
except ImportError:  # Windows: nothing stops a second writer, but files are still published whole
    fcntl = None  # type: ignore[assignment]


def publish(path: Path, content: bytes) -> None:
    """Writes `content` to a temporary file next to `path`, forces it to the disk, then renames it.

    A crash leaves the old file or the new one. Missing folders are created. Raises CostlError when the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise CostlError(
            f"{path}: cannot be written ({error.strerror}). Free space or choose another folder."
        ) from error


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk."""
    # A rename is stored in the folder. Windows cannot open a folder and does not need this.
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_half_written(folder: Path, *names: str) -> None:
    """Removes the temporary files that a killed process left when it published files of these names."""
    for name in names:
        for temporary in folder.glob(f".{name}.*.part"):
            with contextlib.suppress(OSError):  # it does no harm if it stays
                temporary.unlink()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Locks `folder`, which must exist, against other trainings. Raises CacheError when another one holds the lock."""
    if fcntl is None:  # Windows cannot open a folder
        yield
        return
    # The lock is on the folder itself, so that no lock file is left behind.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks cannot lock folders
            lock_or_refuse(
                descriptor, f"{folder}: another costl train is writing here. Wait for it, or choose another --out."
            )
        yield
    finally:
        os.close(descriptor)


def lock_or_refuse(descriptor: int, message: str) -> None:
    """Locks an open file or folder without waiting; the kernel releases the lock when it is closed or the process ends.

    Does nothing on Windows. Raises CacheError with `message` when another process holds the lock, OSError where the disk
    cannot lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CacheError(message) from error

"""Publishes a file in one step, and locks a file or folder against a second writer."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from costl.pipeline.errors import CacheError, CostlError, UsageError

try:
    import fcntl
except ImportError:  # Windows: nothing stops a second writer, but files are still published whole
    fcntl = None  # type: ignore[assignment]


def publish(path: Path, content: bytes) -> None:
    """Writes `content` to `path` as `atomic_path` does. Raises CostlError when the disk refuses."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise CostlError(f"{path}: cannot be written ({error.strerror}). Free space or choose another folder.") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block the file is forced to the disk and renamed to `path`.

    A crash leaves the old file or the new one. Missing folders are made. Raises OSError when the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number is not enough: another machine may have a process of the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # where the disk fails, the next run removes it
            temporary.unlink(missing_ok=True)


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


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The argument `name` of a public function as a path. Raises UsageError for a value that is not one."""
    with contextlib.suppress(TypeError, UnicodeEncodeError):
        if os.fspath(value) and b"\0" not in os.fsencode(value):
            return Path(value)
    raise UsageError(f"{name} is {value!r}, expected a path.")


def remove_half_written(folder: Path, *names: str) -> None:
    """Removes the temporary files that a killed process left when it published files of these names."""
    for name in names:
        for temporary in folder.glob(f".{name}.*"):
            with contextlib.suppress(OSError):  # it does no harm if it stays
                temporary.unlink()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Locks `folder`, which must exist, against other trainings. Raises CacheError when another one holds the lock."""
    message = f"{folder}: another costl train is writing here. Wait for it, or choose another --out."
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # some network disks cannot lock folders
            stack.enter_context(locked(folder, message))
        yield


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Locks a folder, or a file that is made if it is missing, without waiting, until the block or the process ends.

    Does nothing on Windows. Raises CacheError with `message` when another process holds the lock, OSError when the disk
    cannot lock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheError(message) from error
        yield
    finally:
        os.close(descriptor)

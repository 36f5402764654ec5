"""Publishes a file in one step, and locks a file or folder against a second writer."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from costl.pipeline.errors import BusyError, CostlError, UsageError, next_step

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
        raise CostlError(f"{path}: cannot be written ({error.strerror}). {next_step(error)}") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block the file is forced to the disk and renamed to `path`.

    A crash leaves the old file or the new one. Missing folders are made. Raises OSError when the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process number is not enough: another machine may have a process of the same number.
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
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


def refuse_overwrite(
    path: Path, *, is_ours: Callable[[bytes], bool], inputs: Iterable[Path] = (), overwrite: bool | None = None
) -> None:
    """Raises UsageError where writing `path` would lose something: a folder, a file that the command reads (`inputs`), or,
    unless `overwrite`, a file that is not the command's earlier output.

    `is_ours` decides that from the first and the last 4,096 bytes. `overwrite` is None for a command without --overwrite.
    """
    refuse_folder(path)
    # os.path, because a Path raises for names that are too long.
    if os.path.exists(path) and any(os.path.exists(other) and os.path.samefile(path, other) for other in inputs):
        raise UsageError(f"{path}: this command reads that file, and would write over it. Name another file to write.")
    if overwrite or not os.path.lexists(path):
        return
    content = _ends(path)
    if content is None or (content.strip() and not is_ours(content)):
        hint = "move this one away" if overwrite is None else "pass --overwrite to replace this one"
        raise UsageError(f"{path}: exists, and is not an earlier output of this command. Name another file, or {hint}.")


def refuse_suffix(path: Path, expected: Sequence[str]) -> None:
    """Raises UsageError for the name of a file to write that ends in none of the `expected` suffixes."""
    if path.suffix.lower() not in expected:
        raise UsageError(f"{path}: would be written as {expected[0]}, so its name must end in {' or '.join(expected)}.")


def _ends(path: Path) -> bytes | None:
    """The first and the last 4,096 bytes; None for what is no file, or cannot be read."""
    if not path.is_file():
        return None
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(4096)
        file.seek(max(len(head), path.stat().st_size - 4096))
        return head + file.read()
    return None


def refuse_folder(path: Path) -> None:
    """Raises UsageError for a folder where a file is to be written."""
    if os.path.isdir(path):
        raise UsageError(f"{path}: a folder, expected the name of a file to write. Name a file in it.")


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
    """Locks `folder`, which must exist, against other trainings. Raises BusyError when another one holds the lock."""
    message = f"{folder}: another costl train is writing here. Wait for it, or choose another --out."
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # some network disks cannot lock folders
            stack.enter_context(locked(folder, message))
        yield


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Locks a folder, or a file that is made if it is missing, without waiting, until the block or the process ends.

    Does nothing on Windows. Raises BusyError with `message` when another process holds the lock, OSError when the disk
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
            raise BusyError(message) from error
        yield
    finally:
        os.close(descriptor)

"""Publishing a file: nothing half-written ever has its final name."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import CostlError


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
        _sync_folder(path.parent)
    except OSError as error:
        raise CostlError(
            f"{path}: cannot be written ({error.strerror}). Free space or choose another folder."
        ) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself lives in the folder. Windows cannot open one, and needs no help.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

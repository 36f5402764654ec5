"""The files that a page may ask for: their keys, which cannot be guessed, and the responses."""

from __future__ import annotations

import secrets
import stat
from pathlib import Path
from typing import Any


class ServedFiles:
    """Keys of files. A file keeps its key, so that choosing a video again does not end the question about it."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}  # by key
        self._keys: dict[Path, str] = {}

    def key(self, path: Path) -> str:
        """The key of a file, a new one the first time."""
        key = self._keys.setdefault(path, secrets.token_urlsafe(12))
        self.paths[key] = path
        return key


def file_response(path: Path | None) -> Any:
    """The response with a file. Raises HTTPException 404 for None and for what is no file any more."""
    from fastapi import HTTPException
    from fastapi.responses import FileResponse

    try:
        found = path.stat() if path else None
    except OSError:
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise HTTPException(404)
    # With the `stat_result`, FileResponse does not look again: a file that goes in between would be an error of the server.
    return FileResponse(path, stat_result=found)

"""The files that a page of the demo may ask for, under keys that cannot be guessed."""

from __future__ import annotations

import secrets
from pathlib import Path


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

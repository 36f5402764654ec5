"""A folder of videos that is searched while its index is brought up to date."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from costl.demo.indexing import Indexing
from costl.pipeline.library.folder import CACHE, index_folder
from costl.pipeline.library.update import update_library
from costl.pipeline.progress import ProgressCallback
from costl.search.library import Library
from costl.search.open_library import open_library

_REOPEN_AFTER_S = 5.0  # while videos are being indexed


class IndexedFolder:
    """The library of `folder`; `run`, `weights` and `device` are those of `open_library`. Several threads may share one.

    `indexing` brings the index up to date, in a thread of its own. Searches report to `progress`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: Path | str | None = None,
        weights: str | None = None,
        device: str = "auto",
        progress: ProgressCallback | None = None,
    ):
        self.folder = folder.resolve()
        self._index = index_folder(self.folder)
        self._run = run
        self._device = device
        self._progress = progress
        self.indexing = Indexing(
            lambda report: update_library(self.folder, self._index, weights=weights, device=device, progress=report)
        )
        self._library: Library | None = None
        self._opening = threading.Lock()
        self._opened_at_s = 0.0
        self._opened_after = 0  # updates

    def open(self) -> Library | None:
        """The library with what is indexed so far; None before anything is. While an update runs it may be seconds old."""
        with self._opening:
            runs, now_s = self.indexing.runs, time.monotonic()
            is_old = self.indexing.state == "running" and now_s - self._opened_at_s >= _REOPEN_AFTER_S
            if (self._library is None or is_old or runs != self._opened_after) and (self._index / CACHE).exists():
                known = self._library
                self._library = known.reopen() if known else self._open_first()
                self._opened_at_s, self._opened_after = now_s, runs
            return self._library

    def _open_first(self) -> Library:
        return open_library(self.folder, run=self._run, device=self._device, update=False, progress=self._progress)

"""The update of a library's index in a thread of its own, which can be stopped and started again."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from costl.pipeline.errors import CostlError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.plots.terminal_text import clock

# What each stage does, in the words of the page; before the first report it looks at the folder.
_STEPS = {"check": "Reading new files", "load": "Loading CLIP", "videos": "Indexing", "frames": "Indexing"}
_UNITS = {"check": " files", "videos": " videos", "frames": " clips"}


class _Stopped(Exception):
    """The user has stopped the update."""


class Indexing:
    """Calls `update` in a thread. `state` is "running", "ready", "stopped" or "failed", then with an `error`.

    `runs` counts the updates that have ended.
    """

    def __init__(self, update: Callable[[ProgressCallback], object]):
        self.state = "stopped"
        self.error = ""
        self.runs = 0
        self._progress: Progress | None = None
        self._name = ""  # of the video of the latest report that named one
        self._update = update
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts an update, unless one is running."""
        with self._lock:
            if self.state == "running":
                return
            self.state = "running"
            self.error = ""
            self._progress = None
            self._name = ""
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="indexing")
            self._thread.start()

    def stop(self) -> None:
        """Stops the update, and waits until it has stopped. What is indexed so far remains."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def progress_reply(self) -> dict[str, object]:
        """What the page shows while it runs: a text, the name of a video, and `done` of `total`, 0 where nothing is counted."""
        progress = self._progress
        if progress is None:
            return {"text": "Looking for new videos", "name": "", "done": 0, "total": 0}
        text = _STEPS.get(progress.stage, "Preparing the search")
        if progress.stage not in _UNITS:
            return {"text": text, "name": "", "done": 0, "total": 0}
        left_s = getattr(progress.speed, "left_s", None)
        left = "" if left_s is None else f", about {clock(left_s)} left"
        text += f": {progress.done:,} of {progress.total:,}{_UNITS[progress.stage]}{left}"
        return {"text": text, "name": self._name, "done": progress.done, "total": progress.total}

    def _run(self) -> None:
        state = "ready"
        try:
            self._update(self._report)
        except _Stopped:
            state = "stopped"
        except CostlError as error:
            state = "failed"
            self.error = str(error)
        except Exception as error:
            traceback.print_exception(error)
            state = "failed"
            self.error = f"{error} Look at the terminal of the demo."
        self.runs += 1
        self.state = state  # last: who sees it finds the rest complete

    def _report(self, progress: Progress) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._name = progress.video or progress.detail or self._name
        self._progress = progress

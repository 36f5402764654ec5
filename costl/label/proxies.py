"""Copies of videos that the browser cannot play, made in the background, one after the other, when the page asks for one."""

from __future__ import annotations

import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from costl.label.videos import LabelVideo
from costl.pipeline.errors import CostlError
from costl.pipeline.preview.proxy import proxy_path, write_proxy
from costl.pipeline.progress import Progress


class _Stopped(Exception):
    """The page is being closed."""


class Proxies:
    """Proxies in `store` (see `write_proxy`), by the names of their videos."""

    def __init__(self, store: Path):
        self._store = store
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="proxy")
        self._status: dict[str, dict[str, object]] = {}

    def path(self, video: LabelVideo) -> Path | None:
        """The proxy of a video, if there is one."""
        try:
            path = proxy_path(video.path, self._store)
        except CostlError:
            return None
        return path if path.is_file() else None

    def start(self, video: LabelVideo) -> None:
        """Makes the proxy of a video, unless it is being made."""
        if self.status(video)["state"] not in ("waiting", "running"):
            self._status[video.name] = {"state": "waiting", "done": 0, "total": 0}
            self._thread.submit(self._make, video)

    def status(self, video: LabelVideo) -> dict[str, object]:
        """The `state`: "none", "waiting", "running" with the frames `done` of `total`, "ready", or "failed" with `error`."""
        status = self._status.get(video.name, {"state": "none"})
        if status["state"] in ("none", "ready"):
            return {"state": "ready" if self.path(video) else "none"}
        return status

    def close(self) -> None:
        """Stops all work, and waits until it has stopped."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def _make(self, video: LabelVideo) -> None:
        def report(progress: Progress) -> None:
            if self._stop.is_set():
                raise _Stopped
            self._status[video.name] = {"state": "running", "done": progress.done, "total": progress.total}

        try:
            write_proxy(video.path, self._store, progress=report)
            status: dict[str, object] = {"state": "ready"}
        except _Stopped:
            status = {"state": "none"}
        except CostlError as error:
            status = {"state": "failed", "error": str(error)}
        except Exception as error:
            traceback.print_exception(error)
            status = {"state": "failed", "error": f"{error} Look at the terminal."}
        self._status[video.name] = status

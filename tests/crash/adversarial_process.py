"""The `costl` command with a decoder that does to a video what the name of its file says, and a time limit of a second.

python tricky.py extract --videos w
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.decode.worker import open_video

ODD = "odd-"  # how the names of such files begin


def open_tricky(path: str) -> Any:
    """Opens the video, unless that is when its trick is due."""
    name = Path(path).stem
    if name == f"{ODD}stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    video = open_video(path)
    return _Tricky(video, Path(path)) if name.startswith(ODD) else video


class _Tricky:
    """A video whose frames come as they should, but for what happens on the way."""

    def __init__(self, video: Any, path: Path):
        self._video, self._path = video, path

    def __enter__(self) -> _Tricky:
        self._video.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._video.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._video, name)

    def sample(self, *arguments: Any, **options: Any) -> Any:
        for frames in self._video.sample(*arguments, **options):
            yield frames
            self._trick(self._path.stem.removeprefix(ODD))

    def _trick(self, kind: str) -> None:
        if kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "greedy":
            np.empty(1 << 40, np.uint8)
        elif kind == "growing":
            with self._path.open("ab") as file:
                file.write(b"more")
        elif kind == "replaced":
            before = self._path.stat()
            self._path.write_bytes(self._path.read_bytes()[::-1])  # the same size, and the old time of modification
            os.utime(self._path, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif kind == "gone":
            self._path.unlink()


if __name__ == "__main__":  # alone: the decode processes import this file, too, and need no more than they know
    from costl.commands import main
    from costl.pipeline import extract
    from costl.pipeline.decode import pool as workers

    workers.decode_videos.__wrapped__.__kwdefaults__["open_video"] = open_tricky
    extract.extract.__kwdefaults__["time_limit_s"] = 1.0
    main()

"""The `costl` command with a decoder that fails as the name of each video says, and a time limit of one second.

python adversarial_process.py extract --videos w
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.decode.backends import open_video
from costl.pipeline.options import FrameOptions

PREFIX = "fails-"  # of the names of the videos that fail


def open_failing_video(path: Path, options: FrameOptions) -> Any:
    """Opens a video; `fails-stop` stops the decode process first, and the disk of `fails-disk...` is broken."""
    if path.stem.startswith(f"{PREFIX}disk"):
        raise OSError(errno.EIO, "Input/output error")
    if path.stem == f"{PREFIX}stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    context = open_video(path, options)
    return _FailingVideo(context, path) if path.stem.startswith(PREFIX) else context


class _FailingVideo:
    """A video that decodes as usual and fails after each batch of frames."""

    def __init__(self, context: Any, path: Path):
        self._context = context
        self._path = path

    def __enter__(self) -> _FailingVideo:
        self._video = self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._video, name)

    def sample(self, *arguments: Any, **options: Any) -> Any:
        for frames in self._video.sample(*arguments, **options):
            yield frames
            self._fail(self._path.stem.removeprefix(PREFIX))

    def _fail(self, kind: str) -> None:
        if kind == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "memory":
            np.empty(1 << 40, np.uint8)
        elif kind == "growing":
            with self._path.open("ab") as file:
                file.write(b"more")
        elif kind == "replaced":
            before = self._path.stat()
            self._path.write_bytes(self._path.read_bytes()[::-1])  # the size and the modification time stay
            os.utime(self._path, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif kind == "deleted":
            self._path.unlink()


if __name__ == "__main__":
    import adversarial_process  # decode processes find this module, but not the script

    from costl.commands import main
    from costl.pipeline import extract
    from costl.pipeline.decode.worker import DecodeSettings

    DecodeSettings.__init__.__kwdefaults__["open_video"] = adversarial_process.open_failing_video
    extract.extract.__kwdefaults__["time_limit_s"] = 1.0
    main()

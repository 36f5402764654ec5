"""A stand-in for a video that needs no file: its name says how and when it fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from costl.pipeline.decode.video import Frames
from costl.pipeline.errors import VideoError
from costl.pipeline.videos import Video


class FakeVideo:
    """An `OpenVideo` of eight seconds whose k-th sampled frame is a flat grey of k.

    A name that ends with "open" or "later" fails when the video is opened, or after the first chunk. Its beginning says
    how: "hang", "stop", "kill", "fault", "refuse" or "surprise".
    """

    picture_start_s, duration_s, height, width, repaired, decoder = 0.0, 8.0, 48, 64, 0, "fake"

    def __init__(self, path: Path, options: object = None):
        self.name = path.name
        self._fail_if_named("open")

    def __enter__(self) -> FakeVideo:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop_reading_ahead(self) -> None:
        pass

    def sample(self, wanted_s, chunk):
        for begin in range(0, len(wanted_s), chunk):
            if begin:
                self._fail_if_named("later")
            times_s = wanted_s[begin : begin + chunk]
            grey = np.arange(begin, begin + len(times_s), dtype=np.uint8)
            yield Frames(np.tile(grey[:, None, None, None], (1, self.height, self.width, 3)), times_s)

    def _fail_if_named(self, moment: str) -> None:
        if not self.name.endswith(moment):
            return
        if self.name.startswith("hang"):
            time.sleep(1000)
        if self.name.startswith("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.name.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name.startswith("fault"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.name.startswith("refuse"):
            raise VideoError(f"{self.name}: not today.", status="short")
        if self.name.startswith("surprise"):
            raise KeyError("an unexpected error")


def fake_videos(*names: str) -> list[Video]:
    return [Video(name, Path(name)) for name in names]

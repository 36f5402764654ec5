"""The durations of videos, from their files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path

from costl.benchmarks.common import DurationOf
from costl.pipeline.errors import VideoError
from costl.pipeline.progress import Progress, ProgressCallback


def durations(find: Callable[[str], Path | None], progress: ProgressCallback | None) -> DurationOf:
    """A function that opens the file of a video, which `find` gives, once, and returns its duration in seconds."""
    counter = count(1)

    @cache
    def duration_of(vid: str) -> float:
        from costl.pipeline.decode.backends import open_video

        path = find(vid)
        if path is None:
            raise VideoError(f"{vid}: its video is missing.")
        done = next(counter)
        if progress:
            progress(Progress("durations", done, done, path.name))
        with open_video(path) as video:
            return video.duration_s

    return duration_of

"""The state of the demo without its page: the videos that can be chosen, the questions in work, and their answers."""

from __future__ import annotations

import asyncio
import io
import os
import re
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from costl.ask.answer import Answer, Moment
from costl.ask.asker import Asker
from costl.demo.heatmap import overlay_heatmap
from costl.demo.page import answer_html, error_html, player_html, progress_reply
from costl.demo.served_files import ServedFiles
from costl.demo.streams import json_line, until_done
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.preview.cut import browser_start_s, frames_at
from costl.pipeline.progress import Progress

MOMENTS_SHOWN = 5
PICTURE_HEIGHT = 270  # pixels
_AT_ONCE = 32  # questions; those about new videos wait for each other


class _NotWanted(Exception):
    """Nobody waits for an answer about this video any more."""


class DemoSessions:
    """Answers the queries of several browser sessions at the same time.

    `folder` holds the videos that can be chosen; None allows uploads only. `has_ended`: whether the server is shutting
    down, so that replies must end. Raises UsageError if `folder` does not exist.
    """

    def __init__(self, asker: Asker, *, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Give the folder that holds the videos with --videos.")
        self.asker = asker
        self.has_ended: Callable[[], bool] = lambda: False
        self._folder = folder and folder.resolve()
        self._videos = ServedFiles()
        self._waiting = Counter[Path]()  # how many pages wait for an answer about each video; changed in the event loop only
        self._progress: dict[Path, Progress] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE)

    def video_names(self) -> list[str]:
        """The names of the videos in the folder, without links that lead out of it."""
        from costl.pipeline.videos import is_video

        if self._folder is None:
            return []
        files = (path for path in self._folder.iterdir() if is_video(path.name) and path.is_file())
        return sorted(path.name for path in files if path.resolve().parent == self._folder)

    def choose_video(self, name: str | None, upload: str | None) -> str:
        """Registers an uploaded file, or else the video `name` of the folder, and returns the HTML of its player.

        Returns an error message for a file that cannot be used, and an empty text for an unknown name.
        """
        if upload:
            path = Path(upload)
        elif self._folder is not None and name in self.video_names():
            path = self._folder / str(name)
        else:
            return ""
        try:
            start_s = browser_start_s(path)
        except Exception as error:
            return _problem(error, path)
        return player_html(self._videos.key(path), path.name, start_s)

    def video_file(self, key: str) -> Path | None:
        """The file of a chosen video; None for an unknown key."""
        return self._videos.paths.get(key)

    async def replies(self, key: str, query: str) -> AsyncIterator[str]:
        """Lines of JSON: the progress of an answer (see `progress_reply`) until {"html": the answer or an error message}.

        If it is closed early, the extraction of the video stops, unless another page waits for an answer about this video.
        """
        path = self.video_file(key)
        if path is None:
            yield json_line(html=error_html("Choose or upload a video first."))
            return
        self._waiting[path] += 1
        try:
            answer = asyncio.wrap_future(self._threads.submit(self._reply, path, query.strip()))
            waiting = lambda: progress_reply(self._progress.get(path))  # noqa: E731
            async for line in until_done(answer, waiting=waiting, has_ended=self.has_ended):
                yield line
        finally:
            self._waiting[path] -= 1

    def close(self) -> None:
        """Stops all work, and waits until it has stopped."""
        self._waiting.clear()
        self._threads.shutdown(cancel_futures=True)

    def _reply(self, path: Path, query: str) -> dict[str, object]:
        return {"html": self._answer(path, query)}

    def _answer(self, path: Path, query: str) -> str:
        """The HTML of the answer or of an error message; empty if nobody waits for it."""

        def report(progress: Progress) -> None:
            if self._waiting[path] < 1:
                raise _NotWanted
            self._progress[path] = progress

        try:
            (answer,) = self.asker.ask(path, query, progress=report)
            best = answer.top(MOMENTS_SHOWN)
            return answer_html(best, pictures=self._moment_pictures(best))
        except _NotWanted:
            return ""
        except Exception as error:
            return _problem(error, path)
        finally:
            self._progress.pop(path, None)

    def _moment_pictures(self, answer: Answer) -> list[tuple[float, bytes]]:
        """The time and the PNG of the most salient frame of each moment, with step one's attention as a heatmap.

        Empty for a model without step one.
        """
        times_s = [_most_salient_second(answer, moment) for moment in answer.moments]
        attention = self.asker.patch_attention(answer.video, answer.query, times_s)
        if not attention:
            return []
        seconds = sorted({one.centre_s for one in attention})  # frames are decoded in this order
        frames = dict(zip(seconds, frames_at(answer.video, seconds, height=PICTURE_HEIGHT), strict=True))
        pictures = []
        for one in attention:
            frame = frames[one.centre_s]
            region = self.asker.visible_region(*frame.shape[:2])
            image = io.BytesIO()
            Image.fromarray(overlay_heatmap(frame, one.weights, region)).save(image, "PNG")
            pictures.append((one.centre_s, image.getvalue()))
        return pictures


def _most_salient_second(answer: Answer, moment: Moment) -> float:
    """The centre of the most salient clip of a moment."""
    clip_s = answer.saliency.clip_s
    scores = np.array(answer.saliency.scores)
    first = min(int(moment.start_s / clip_s), len(scores) - 1)
    last = max(first + 1, int(np.ceil(moment.end_s / clip_s)))
    return min((first + int(scores[first:last].argmax()) + 0.5) * clip_s, answer.duration_s)


def _problem(error: Exception, path: Path) -> str:
    """The HTML of an error message about a video, under the name of the user's file and without the folder it lies in."""
    if not isinstance(error, CostlError):
        traceback.print_exception(error)
    message = str(error).replace(f"{path.parent}{os.sep}", "")
    if isinstance(error, CostlError) and not isinstance(error, VideoError):
        return error_html(message)
    message = re.sub(r"\[Errno -?\d+\] ", "", message).rstrip(".")
    name = "" if path.name in message else f"{path.name}: "
    return error_html(f"{name}{message}. Choose another video, or convert this one: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4")

"""The state of the demo without its page: the videos that can be chosen, the pending queries, and their answers."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from costl.ask.answer import Answer, Moment, check_queries
from costl.ask.asker import Asker
from costl.demo.heatmap import overlay_heatmap
from costl.demo.page import MomentPicture, answer_html, error_html, player_html
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.preview.cut import frames_at, length_s

MOMENTS_SHOWN = 5
PICTURE_HEIGHT = 270  # pixels
MAX_SESSIONS, MAX_VIDEOS = 1000, 1000  # above these limits, the oldest are forgotten


class DemoSessions:
    """Answers the queries of several browser sessions. Threads may share it.

    `folder` holds the videos that can be chosen; None allows uploads only. Raises UsageError if `folder` does not exist.
    """

    def __init__(self, asker: Asker, *, folder: Path | None, max_minutes: float):
        self.asker = asker
        self.max_minutes = max_minutes
        self._folder = _checked_folder(folder)
        self._videos: OrderedDict[str, tuple[Path, str]] = OrderedDict()  # key -> file, name
        self._query_number: OrderedDict[str, int] = OrderedDict()  # session -> number of its changes so far
        self._lock = threading.Lock()

    def video_names(self) -> list[str]:
        """The names of the videos in the folder, without links that lead out of it."""
        from costl.pipeline.videos import SUFFIXES

        if self._folder is None:
            return []
        files = (path for path in self._folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        return sorted(path.name for path in files if path.resolve().parent == self._folder)

    def choose_video(self, name: str | None, upload: str | None) -> tuple[str, str]:
        """Registers an uploaded file, or else the video `name` of the folder, and returns its key and its player's HTML.

        Returns an empty key and an error message for a file that cannot be used, and two empty texts for an unknown name.
        """
        try:
            if upload:
                path = Path(upload)
                name = path.name
            elif self._folder is not None and name in self.video_names():
                path = self._folder / str(name)
            else:
                return "", ""
            self._check_length(path)
        except VideoError as error:
            return "", error_html(str(error))
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._videos[key] = path, str(name)
            while len(self._videos) > MAX_VIDEOS:
                self._videos.popitem(last=False)
        return key, player_html(key, str(name))

    def video_file(self, key: str) -> Path | None:
        """The file of a chosen video; None for an unknown key."""
        with self._lock:
            return self._videos.get(key, (None, ""))[0]

    def drop_pending(self, session: str) -> None:
        """Marks the pending answer of a session as out of date, because its query or its video has changed."""
        with self._lock:
            self._query_number[session] = self._query_number.pop(session, 0) + 1
            while len(self._query_number) > MAX_SESSIONS:
                self._query_number.popitem(last=False)

    def answer(self, session: str, key: str, query: str) -> str | None:
        """The HTML of the answer or of an error message; None if the query or the video changed in the meantime."""
        number = self._query_number.get(session, 0)
        answer = self._answer_or_error(key, query.strip())
        return answer if self._query_number.get(session, 0) == number else None

    def _check_length(self, path: Path) -> None:
        minutes = length_s(path) / 60
        if minutes > self.max_minutes:
            raise VideoError(
                f"{path.name}: {minutes:.0f} minutes long, but this demo accepts at most {self.max_minutes:g}. "
                "Cut the video, or start costl demo with a larger --max-minutes."
            )

    def _answer_or_error(self, key: str, query: str) -> str:
        try:
            path = self.video_file(key)
            if path is None:
                raise UsageError("Choose or upload a video first.")
            check_queries([query])
            (answer,) = self.asker.ask(path, query)
            best = answer.top(MOMENTS_SHOWN)
            return answer_html(best, key=key, pictures=self._moment_pictures(best))
        except CostlError as error:
            return error_html(str(error))

    def _moment_pictures(self, answer: Answer) -> list[MomentPicture]:
        """The most salient frame of each moment, with step one's attention as a heatmap; empty without step one."""
        times_s = [_most_salient_second(answer, moment) for moment in answer.moments]
        attention = self.asker.patch_attention(answer.video, answer.query, times_s)
        if not attention:
            return []
        order = sorted(range(len(attention)), key=lambda i: attention[i].centre_s)  # frames are decoded in this order
        frames = frames_at(answer.video, [attention[i].centre_s for i in order], height=PICTURE_HEIGHT)
        pictures = {}
        for i, frame in zip(order, frames, strict=True):
            box = attention[i].box(*frame.shape[:2])
            pictures[i] = MomentPicture(attention[i].centre_s, overlay_heatmap(frame, attention[i].weights, box))
        return [pictures[i] for i in range(len(attention))]


def _most_salient_second(answer: Answer, moment: Moment) -> float:
    """The centre of the most salient clip of a moment."""
    clip_s = answer.saliency.clip_s
    scores = np.array(answer.saliency.scores)
    first = min(int(moment.start_s / clip_s), len(scores) - 1)
    last = min(max(first + 1, int(np.ceil(moment.end_s / clip_s))), len(scores))
    return (first + int(scores[first:last].argmax()) + 0.5) * clip_s


def _checked_folder(folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give the folder that holds the videos with --videos.")
    return None if folder is None else folder.resolve()

"""The state of the demo without its page: the videos that can be chosen, the pending queries, and their answers."""

from __future__ import annotations

import io
import secrets
from pathlib import Path

import numpy as np
from PIL import Image

from costl.ask.answer import Answer, Moment
from costl.ask.asker import Asker
from costl.demo.heatmap import overlay_heatmap
from costl.demo.page import answer_html, error_html, player_html
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.preview.cut import frames_at, length_s

MOMENTS_SHOWN = 5
PICTURE_HEIGHT = 270  # pixels


class DemoSessions:
    """Answers the queries of several browser sessions. Threads may share it.

    `folder` holds the videos that can be chosen; None allows uploads only. Raises UsageError if `folder` does not exist.
    """

    def __init__(self, asker: Asker, *, folder: Path | None):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Give the folder that holds the videos with --videos.")
        self.asker = asker
        self._folder = folder and folder.resolve()
        self._videos: dict[str, Path] = {}  # by key
        self._versions: dict[str, str] = {}  # of the query and the video of each session

    def video_names(self) -> list[str]:
        """The names of the videos in the folder, without links that lead out of it."""
        from costl.pipeline.videos import is_video

        if self._folder is None:
            return []
        files = (path for path in self._folder.iterdir() if is_video(path) and path.is_file())
        return sorted(path.name for path in files if path.resolve().parent == self._folder)

    def choose_video(self, name: str | None, upload: str | None) -> tuple[str, str]:
        """Registers an uploaded file, or else the video `name` of the folder, and returns its key and its player's HTML.

        Returns an empty key and an error message for a file that cannot be used, and two empty texts for an unknown name.
        """
        if upload:
            path = Path(upload)
        elif self._folder is not None and name in self.video_names():
            path = self._folder / str(name)
        else:
            return "", ""
        try:
            length_s(path)
        except VideoError as error:
            return "", error_html(str(error))
        key = secrets.token_urlsafe(12)
        self._videos[key] = path
        return key, player_html(key, path.name)

    def video_file(self, key: str) -> Path | None:
        """The file of a chosen video; None for an unknown key."""
        return self._videos.get(key)

    def drop_pending(self, session: str) -> None:
        """Marks the pending answer of a session as out of date, because its query or its video has changed."""
        self._versions[session] = secrets.token_urlsafe()

    def answer(self, session: str, key: str, query: str) -> str | None:
        """The HTML of the answer or of an error message; None if the query or the video changed in the meantime."""
        version = self._versions.get(session)
        answer = self._answer_or_error(key, query.strip())
        return answer if self._versions.get(session) == version else None

    def _answer_or_error(self, key: str, query: str) -> str:
        try:
            path = self.video_file(key)
            if path is None:
                raise UsageError("Choose or upload a video first.")
            (answer,) = self.asker.ask(path, query)
            best = answer.top(MOMENTS_SHOWN)
            return answer_html(best, key=key, pictures=self._moment_pictures(best))
        except CostlError as error:
            return error_html(str(error))

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

"""What the demo does, without the page: which videos may be asked, who waits for which answer, and what is shown."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from costl.ask.answer import Answer, Moment, check_queries
from costl.ask.asker import Asker
from costl.demo.page import Shown, answer_html, heat_over, player_html, sentence_html
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.preview.cut import frames_at, probe

MOMENTS = 5
LOOK_HEIGHT = 270
SESSIONS, VIDEOS = 1000, 1000  # remembered; the oldest go first


class Desk:
    """Takes questions of several people at once. `folder` holds the videos to choose from, if any."""

    def __init__(self, asker: Asker, *, folder: Path | None, max_minutes: float):
        self.asker, self.max_minutes = asker, max_minutes
        self._folder = _checked(folder)
        self._videos: OrderedDict[str, tuple[Path, str]] = OrderedDict()  # key -> file, name
        self._turn: OrderedDict[str, int] = OrderedDict()  # session -> how often its question has changed
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The videos of the folder; a link that leads out of it is none of them."""
        from costl.pipeline.videos import SUFFIXES

        if self._folder is None:
            return []
        files = (path for path in self._folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        return sorted(path.name for path in files if path.resolve().parent == self._folder)

    def take(self, name: str | None, upload: str | None) -> tuple[str, str]:
        """(key, HTML of the player) of an uploaded file or else a named one; (empty, a sentence) for what is no video."""
        try:
            if upload:
                path, name = Path(upload), Path(upload).name
            elif self._folder is not None and name in self.names():
                path = self._folder / str(name)
            else:
                return "", ""
            self._check_length(path)
        except VideoError as error:
            return "", sentence_html(str(error))
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._videos[key] = path, str(name)
            while len(self._videos) > VIDEOS:
                self._videos.popitem(last=False)
        return key, player_html(key, str(name))

    def file(self, key: str) -> Path | None:
        """The file of a video that somebody chose; nothing else can be had."""
        with self._lock:
            return self._videos.get(key, (None, ""))[0]

    def changed(self, session: str) -> None:
        """The question of this session is another now: what is under way for the old one is not wanted any more."""
        with self._lock:
            self._turn[session] = self._turn.pop(session, 0) + 1
            while len(self._turn) > SESSIONS:
                self._turn.popitem(last=False)

    def answer(self, session: str, key: str, query: str) -> str | None:
        """The HTML of the answer, or of what is wrong, in a sentence; None where the question has changed meanwhile."""
        turn = self._turn.get(session, 0)
        found = self._try(key, query.strip())
        return found if self._turn.get(session, 0) == turn else None

    def _try(self, key: str, query: str) -> str:
        try:
            path = self.file(key)
            if path is None:
                raise UsageError("Choose or upload a video first.")
            check_queries([query])
            (answer,) = self.asker.ask(path, query)
            top = answer.top(MOMENTS)
            return answer_html(top, key=key, shown=self._shown(top))
        except CostlError as error:
            return sentence_html(str(error))

    def _shown(self, answer: Answer) -> list[Shown]:
        """For each moment the frame that fits best, with the heat of step one over it."""
        looks = self.asker.looks(answer.video, answer.query, [_best_second(answer, m) for m in answer.moments])
        order = sorted(range(len(looks)), key=lambda i: looks[i].at_s)  # a video is read forwards
        frames = frames_at(answer.video, [looks[i].at_s for i in order], height=LOOK_HEIGHT) if looks else []
        shown = {}
        for i, frame in zip(order, frames, strict=True):
            shown[i] = Shown(looks[i].at_s, heat_over(frame, looks[i].share, looks[i].box(*frame.shape[:2])))
        return [shown[i] for i in range(len(looks))]

    def _check_length(self, path: Path) -> None:
        minutes = probe(path).duration_s / 60
        if minutes > self.max_minutes:
            raise VideoError(
                f"{path.name}: {minutes:.0f} minutes long, at most {self.max_minutes:g} are taken here. "
                "Cut it, or start costl demo with a larger --max-minutes."
            )


def _best_second(answer: Answer, moment: Moment) -> float:
    """The middle of the most salient clip of a moment."""
    clip_s, scores = answer.saliency.clip_s, np.array(answer.saliency.scores)
    first = min(int(moment.start_s / clip_s), len(scores) - 1)
    last = min(max(first + 1, int(np.ceil(moment.end_s / clip_s))), len(scores))
    return (first + int(scores[first:last].argmax()) + 0.5) * clip_s


def _checked(folder: Path | None) -> Path | None:
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Give the folder that holds the videos with --videos.")
    return None if folder is None else folder.resolve()

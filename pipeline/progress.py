"""Where a long call stands: what it tells the callback it was given, for the command line or anyone else to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Flow:
    """How frames run through an extraction just now: so many a second; `waiting_for` ("decode", "CLIP" or "disk") holds
    the others up, who spend the share `waiting` of their time on it; `left_s` until the end, None while nobody knows.
    """

    frames: int
    frames_per_s: float
    waiting_for: str
    waiting: float
    left_s: float | None = None

    def __str__(self) -> str:
        left = "" if self.left_s is None else f", {timedelta(seconds=round(self.left_s))} left"
        return f"{self.frames_per_s:.3g} frames/s, waiting for {self.waiting_for} {self.waiting:.0%}{left}".replace(
            "%", " %"
        )


@dataclass(frozen=True)
class Pace:
    """How a training goes just now: the mean `loss` of `epoch` so far, so many queries a second (0 before the second
    step), `left_s` until the last epoch, None while nobody knows; `before`, the epoch before in words."""

    epoch: int
    loss: float
    queries_per_s: float = 0.0
    left_s: float | None = None
    before: str = ""

    def __str__(self) -> str:
        speed = f", {self.queries_per_s:.3g} queries/s" if self.queries_per_s else ""
        left = "" if self.left_s is None else f", {timedelta(seconds=round(self.left_s))} left"
        before = f" ({self.before})" if self.before else ""
        return f"epoch {self.epoch}: loss {self.loss:.3f}{speed}{left}{before}"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` in a `stage`, `total` 0 where nobody knows yet; `detail` is what it is at, in words.

    Stages of extraction: load, words, check, videos, and frames where there is but one video; of training: train; of
    evaluation: predict; of asking: ask, cut and those of extraction and evaluation; of the sample world: render; of
    preparing a benchmark: durations. A call made of several puts a word of its own before them.
    Of extraction alone: `video` has just ended with `status`. Of extraction and training: `flow`, how fast it goes; `word`,
    a sentence that the person should read even when the bar has gone.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    video: str = ""
    status: str = ""
    flow: Flow | Pace | None = None
    word: str = ""


Tell = Callable[[Progress], None]

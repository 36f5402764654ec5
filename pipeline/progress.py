"""What a long call reports to its progress callback: the stage, how much is done, and how fast it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Progress:
    """`done` of `total` in a `stage`; `total` is 0 while it is not known; `detail` names the item at work.

    Stages of extraction: load, words, check, videos, and frames (encoded ones) if there is only one video; of training:
    train; of evaluation: predict, ground (the videos of a corpus); of asking: ask, cut, wait (for another thread's
    extraction) and those of extraction and evaluation; of the sample world: render; of preparing a benchmark: durations; of
    reproducing one: prepare, forecast, features. A call that runs several of these puts its own name in front of the stage.
    Extraction only: `video` has just ended with `status`. Extraction and training: `speed`, and `message`, a sentence that
    stays on the screen after the bar has gone.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    video: str = ""
    status: str = ""
    speed: Throughput | TrainingSpeed | None = None
    message: str = ""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Throughput:
    """The current speed of an extraction.

    `frames` encoded so far. The rest waits for `waiting_for` ("decode", "CLIP" or "disk") and spends the share `waiting`
    (0 to 1) of its time on it. `left_s`: estimated seconds until the end, None while unknown.
    """

    frames: int
    frames_per_s: float
    waiting_for: str
    waiting: float
    left_s: float | None = None

    def __str__(self) -> str:
        waiting = f"waiting for {self.waiting_for} {100 * self.waiting:.0f} %"
        return f"{self.frames_per_s:.3g} frames/s, {waiting}{_time_left(self.left_s)}"


@dataclass(frozen=True)
class TrainingSpeed:
    """The current speed of a training: the mean `loss` of `epoch` so far, and queries per second (0 before the second step).

    `left_s`: estimated seconds until the end of the last epoch, None while unknown. `before`: a summary of the last epoch.
    """

    epoch: int
    loss: float
    queries_per_s: float = 0.0
    left_s: float | None = None
    before: str = ""

    def __str__(self) -> str:
        speed = f", {self.queries_per_s:.3g} queries/s" if self.queries_per_s else ""
        before = f" ({self.before})" if self.before else ""
        return f"epoch {self.epoch}: loss {self.loss:.3f}{speed}{_time_left(self.left_s)}{before}"


def _time_left(left_s: float | None) -> str:
    return "" if left_s is None else f", {timedelta(seconds=round(left_s))} left"

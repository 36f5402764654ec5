"""One query of a report: its truth, its answer, how well they agree, and the pictures in which the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from costl.data.annotations import Moment, Prediction, Query
from costl.metrics.compute import interval_iou
from costl.predict.attention_maps import Looks

HIT, NEAR = 0.5, 0.3  # least IoU of the first moment: the thresholds of R1@0.5 and R1@0.3
OUTCOMES = {
    "hit": f"hit: IoU {HIT} or more",
    "near": f"near: IoU {NEAR} or more",
    "miss": f"miss: IoU under {NEAR}",
    "unlabelled": "unlabelled: no true moment",
    "unanswered": "unanswered: no features",
}
LENGTHS = {"short": "short: up to 10 s", "middle": "middle: 10 to 30 s", "long": "long: over 30 s"}


@dataclass(frozen=True)
class Shot:
    """A picture of one clip: `name` of the picture among all of the report, why it is shown, and where the model looked.

    `looks` holds this clip alone (t = 1); None where the features have no patches.
    """

    name: str
    label: str
    second: float
    looks: Looks | None


@dataclass(frozen=True)
class Item:
    """A query with its answer, None when its video has no features; `shots` for those in full detail."""

    query: Query
    answer: Prediction | None
    detailed: bool = False
    shots: tuple[Shot, ...] = field(default=())

    @property
    def windows(self) -> tuple[Moment, ...]:
        """The predicted moments, best first."""
        return tuple(sorted(self.answer.windows, key=lambda moment: -moment[2])) if self.answer else ()

    def overlap(self, moment: Sequence[float]) -> float:
        """IoU of a moment with the true one that it overlaps most; 0 where there is none."""
        if not self.query.windows:
            return 0.0
        return float(np.nan_to_num(interval_iou(np.array(moment[:2]), np.array(self.query.windows))).max())

    @property
    def iou(self) -> float:
        """Of the first moment, as R1 counts it."""
        return self.overlap(self.windows[0]) if self.windows else 0.0

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        if self.answer is None:
            return "unanswered"
        if not self.query.windows:
            return "unlabelled"
        return "hit" if self.iou >= HIT else "near" if self.iou >= NEAR else "miss"

    @property
    def length_s(self) -> float:
        """Of the longest true moment."""
        return max((end - start for start, end in self.query.windows), default=0.0)

    @property
    def length(self) -> str:
        """One of LENGTHS, or nothing without a true moment."""
        if not self.query.windows:
            return ""
        return "short" if self.length_s <= 10 else "middle" if self.length_s <= 30 else "long"


def clock(second: float) -> str:
    """0:07, 12:30, 1:02:03; tenths where there are any."""
    tenths = round(second * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest // 10:02}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02}:{seconds}" if hours else f"{minutes}:{seconds}"


def by_badness(items: Sequence[Item]) -> list[Item]:
    """Worst first; those without a truth, and then those without an answer, last. Equals stay in their order."""
    last = {"unlabelled": 1, "unanswered": 2}
    return sorted(items, key=lambda item: (last.get(item.outcome, 0), item.iou))


def in_detail(items: Sequence[Item], count: int) -> set[int]:
    """Positions of up to `count` answered items evenly spread from the worst to the best."""
    answered = [i for i, item in enumerate(items) if item.answer is not None]
    if not answered or count < 1:
        return set()
    picked = np.linspace(0, len(answered) - 1, min(count, len(answered))).round().astype(int)
    return {answered[i] for i in picked}

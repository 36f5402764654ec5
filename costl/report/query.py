"""One query of a report: its truth, its prediction, their overlap, and the pictures of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from costl.data.annotations import Moment, Prediction, Query
from costl.metrics.moments import interval_iou
from costl.predict.attention_maps import AttentionMaps

HIT, NEAR = 0.5, 0.3  # smallest IoU of the first moment: the thresholds of R1@0.5 and R1@0.3
OUTCOMES = {
    "hit": f"hit: IoU {HIT} or more",
    "near": f"near: IoU {NEAR} or more",
    "miss": f"miss: IoU under {NEAR}",
    "unlabelled": "unlabelled: no true moment",
    "unanswered": "unanswered: no features",
}
LENGTHS = {"short": "short: up to 10 s", "middle": "middle: 10 to 30 s", "long": "long: over 30 s"}


@dataclass(frozen=True)
class ClipPicture:
    """The picture of one clip: its id in the report, a label that says which clip it is, and the attention maps.

    `maps` holds only this clip (t = 1). It is None for a model without step one.
    """

    picture_id: str
    label: str
    centre_s: float
    maps: AttentionMaps | None


@dataclass(frozen=True)
class Item:
    """A query and its prediction. `answer` is None if the video has no features. Detailed items may have `pictures`."""

    query: Query
    answer: Prediction | None
    detailed: bool = False
    pictures: tuple[ClipPicture, ...] = field(default=())

    @property
    def windows(self) -> tuple[Moment, ...]:
        """The predicted moments, best first."""
        return tuple(sorted(self.answer.windows, key=lambda moment: -moment[2])) if self.answer else ()

    def overlap(self, moment: Sequence[float]) -> float:
        """The largest IoU of a predicted moment with a true one; 0 without a true moment."""
        if not self.query.windows:
            return 0.0
        ious = interval_iou(np.array(moment[:2]), np.array(self.query.windows))
        return float(np.nan_to_num(ious).max())

    @property
    def iou(self) -> float:
        """The IoU of the first predicted moment, as R1 counts it."""
        return self.overlap(self.windows[0]) if self.windows else 0.0

    @property
    def outcome(self) -> str:
        """A key of OUTCOMES."""
        if self.answer is None:
            return "unanswered"
        if not self.query.windows:
            return "unlabelled"
        return "hit" if self.iou >= HIT else "near" if self.iou >= NEAR else "miss"

    @property
    def length_s(self) -> float:
        """The length of the longest true moment; 0 without a true moment."""
        return max((end - start for start, end in self.query.windows), default=0.0)

    @property
    def length(self) -> str:
        """A key of LENGTHS, or empty without a true moment."""
        if not self.query.windows:
            return ""
        return "short" if self.length_s <= 10 else "middle" if self.length_s <= 30 else "long"


def clock(second: float) -> str:
    """m:ss or h:mm:ss, such as 0:07 and 1:02:03, with tenths of a second if they are not zero."""
    minutes, tenths = divmod(round(second * 10), 600)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{tenths // 10:02}" + (f".{tenths % 10}" if tenths % 10 else "")
    return f"{hours}:{minutes:02}:{seconds}" if hours else f"{minutes}:{seconds}"


def worst_first(items: Sequence[Item]) -> list[Item]:
    """Sorts by IoU, the smallest first. Items without a truth, and then items without a prediction, come last."""
    last = {"unlabelled": 1, "unanswered": 2}
    return sorted(items, key=lambda item: (last.get(item.outcome, 0), item.iou))


def choose_detailed(items: Sequence[Item], count: int) -> set[int]:
    """The indices of up to `count` items with a prediction, evenly spread over the list."""
    answered = [i for i, item in enumerate(items) if item.answer is not None]
    if not answered or count < 1:
        return set()
    chosen = np.linspace(0, len(answered) - 1, min(count, len(answered))).round().astype(int)
    return {answered[i] for i in chosen}

"""One query of a report: its truth, its prediction, their overlap, and the pictures of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costl.data.annotations import Moment, Prediction, Query, Window
from costl.metrics.moments import interval_iou
from costl.pipeline.preview.thumbnails import Thumbnail
from costl.plots.pages import curve_points
from costl.plots.predictions import rated_spans
from costl.predict.attention_maps import AttentionMaps

MOST_POINTS = 300  # of a curve: limits the size of the page
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
    """The picture of one clip: its id in the report, the image, a label that says which clip it is, and its time."""

    id: str
    thumbnail: Thumbnail
    label: str
    centre_s: float


@dataclass(frozen=True)
class Item:
    """A query and its prediction. `answer` is None if the video has no features.

    `precision` is the average precision of the predicted highlights, in percent; None if no clip is rated. `maps` has one
    clip for each picture. It is None for a model without step one.
    """

    query: Query
    answer: Prediction | None
    precision: float | None = None
    pictures: tuple[ClipPicture, ...] = ()
    maps: AttentionMaps | None = None

    @property
    def kind(self) -> str:
        """The kind of the query, or the domain of its video; empty if the annotations have neither."""
        return self.query.kind or self.query.domain

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

    @property
    def saliency_points(self) -> list[tuple[float, float]]:
        """The predicted saliency over time as points of an SVG; empty without a prediction.

        There is a point for the centre of each rated clip. In a long video it stands for the best of several clips.
        """
        if not (self.answer and self.answer.saliency):
            return []
        saliency = np.array(self.answer.saliency)
        spans = rated_spans(self.query, len(saliency))
        groups = np.array_split(np.arange(len(saliency)), min(len(saliency), MOST_POINTS))
        best = [group[saliency[group].argmax()] for group in groups]
        return curve_points(spans.mean(axis=1)[best].tolist(), saliency[best].tolist())

    @property
    def ratings(self) -> list[tuple[Window, float]]:
        """Each rated clip in seconds, and its mean rating as a share of the highest possible one, 4."""
        spans = rated_spans(self.query, max(self.query.clip_ids, default=-1) + 1).tolist()
        means = [sum(ratings) / len(ratings) for ratings in self.query.saliency]
        return [(spans[clip], mean / max(4.0, *means)) for clip, mean in zip(self.query.clip_ids, means, strict=True)]

    @property
    def words(self) -> list[tuple[str, float]]:
        """The words of the query with their weights in step two; empty without step two."""
        if self.maps is None or not self.maps.word_weights.size:
            return []
        return list(zip(self.maps.words, self.maps.word_weights[0].tolist(), strict=True))

    def short_list(self, picture: int) -> list[int]:
        """The patches that step one chose in the clip of a picture."""
        return [] if self.maps is None else np.flatnonzero(self.maps.short_list[picture]).tolist()


def worst_first(items: Sequence[Item]) -> list[Item]:
    """Sorts by IoU, the smallest first, and by the precision of the highlights.

    Items without a true moment, and then items without a prediction, come last.
    """
    last = {"unlabelled": 1, "unanswered": 2}
    return sorted(items, key=lambda item: (last.get(item.outcome, 0), item.iou, item.precision or 0))


def choose_detailed(items: Sequence[Item], count: int) -> list[int]:
    """The indices of up to `count` items with a prediction, evenly spread over the list."""
    answered = [i for i, item in enumerate(items) if item.answer is not None]
    chosen = np.linspace(0, len(answered) - 1, min(count, len(answered))).round().astype(int)
    return [answered[i] for i in chosen]

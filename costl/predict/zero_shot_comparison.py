"""Whether a trained model is better than CLIP alone on held-out queries of its own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costl.config import Config
from costl.data.annotations import Prediction, Query
from costl.metrics.bootstrap import Interval, percentile_interval, resampled_counts
from costl.metrics.compute import measure
from costl.pipeline.cache.reader import CacheReader
from costl.predict.zero_shot import zero_shot_prediction


@dataclass(frozen=True)
class ZeroShotComparison:
    """The means of `metric` over `queries` about `videos`, in percent, of a trained model and of CLIP alone.

    `interval`: the 95 % interval of their difference, by a bootstrap over videos; None for a single video.
    """

    metric: str
    trained: float
    zero_shot: float
    interval: Interval | None
    queries: int
    videos: int

    @property
    def is_better(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.interval is not None and self.interval[0] > 0

    def message(self) -> str:
        """One line: both means, the difference, and what to do."""
        difference = self.trained - self.zero_shot
        interval = "" if self.interval is None else f" ({self.interval[0]:+.1f} to {self.interval[1]:+.1f})"
        advice = "" if self.is_better else " The model is not clearly better than CLIP alone: search without it, or label more."
        return (
            f"{self.queries} held-out queries about {self.videos} videos: {self.metric} {self.trained:.1f}, CLIP alone "
            f"{self.zero_shot:.1f}, difference {difference:+.1f}{interval}.{advice}"
        )


def compare_with_zero_shot(
    predictions: Sequence[Prediction], features: CacheReader, queries: Sequence[Query], config: Config
) -> ZeroShotComparison | None:
    """Compares the predictions for these queries with those of CLIP alone, by the metric that chooses the epoch.

    None where frames and sentences share no space, and where the labels do not give this metric.
    """
    if not features.joint.is_known:
        return None
    alone = [zero_shot_prediction(query, features) for query in queries if query.vid in features.video_ids]
    both = [_values(answers, queries, config) for answers in (predictions, alone)]
    if any(values is None for values in both):
        return None
    trained, zero_shot = (values for values in both if values is not None)
    videos, interval = _over_videos(trained - zero_shot, [query.vid for query in queries])
    return ZeroShotComparison(
        metric=config.train.select,
        trained=float(np.nanmean(trained)),
        zero_shot=float(np.nanmean(zero_shot)),
        interval=interval,
        queries=int(np.count_nonzero(~np.isnan(trained))),
        videos=videos,
    )


def _values(predictions: Sequence[Prediction], queries: Sequence[Query], config: Config) -> np.ndarray | None:
    return measure(predictions, queries, benchmark=config.data.benchmark)[1].get(config.train.select)


def _over_videos(differences: np.ndarray, vids: Sequence[str]) -> tuple[int, Interval | None]:
    """The number of videos, and the interval of the mean difference: queries about one video are drawn together."""
    counted = ~np.isnan(differences)
    names, owner = np.unique(np.array(vids)[counted], return_inverse=True)
    if len(names) < 2:
        return len(names), None
    totals = np.bincount(owner, weights=differences[counted])
    sizes = np.bincount(owner)
    means = [counts @ totals / (counts @ sizes) for counts in resampled_counts((), len(names))]
    low, high = percentile_interval(np.concatenate(means))
    return len(names), (float(low), float(high))

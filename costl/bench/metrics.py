"""Measures the speed of the metrics against a plain loop over queries that gives the same numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.compute import compute_metrics
from costl.metrics.moments import IOU_THRESHOLDS
from costl.metrics.score_files import read_predictions, read_truth
from costl.pipeline.errors import CostlError, UsageError

QUERIES, MOMENTS, CLIPS, DURATION_S = 1_550, 10, 75, 150.0  # QVHighlights val
REPEATS = 3
LIMITS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (0, float("inf"))}


@dataclass(frozen=True)
class MetricsBench:
    """CPU seconds on one core for the same `queries`: `compute_metrics` in official mode and the plain loop."""

    queries: int
    ours_s: float
    loop_s: float
    exit_code = 0

    def lines(self) -> list[str]:
        """Both and their ratio, for the terminal."""
        return [
            f"QVHighlights, official mode, {self.queries} queries, CPU seconds on one core (best of {REPEATS}):",
            f"  costl            {self.ours_s:8.3f}",
            f"  a loop per query {self.loop_s:8.3f}   ({self.loop_s / self.ours_s:.1f} times as long)",
            "Both give the same numbers, to the last digit.",
        ]

    def data(self) -> dict[str, Any]:
        """The measurement and the ratio as JSON-compatible values."""
        return asdict(self) | {"ratio": self.loop_s / self.ours_s}


def bench_metrics(*, predictions: Path | None = None, truth: Path | None = None, seed: int = 0) -> MetricsBench:
    """Times the official QVHighlights metrics against a loop that scores one query after the other.

    Uses synthetic predictions of the size of QVHighlights val, or files. Raises UsageError for one file without the other
    and for files that cannot be scored, CostlError when the two differ in any digit.
    """
    if (predictions is None) != (truth is None):
        raise UsageError("--predictions and --truth belong together: pass both, or none for synthetic ones.")
    if predictions is not None and truth is not None:
        queries = read_truth(truth)
        rows = read_predictions(predictions, queries, truth=truth)
    else:
        rows, queries = synthetic(seed)
    ours, ours_s = min((_timed(_official, rows, queries) for _ in range(REPEATS)), key=lambda pair: pair[1])
    loop, loop_s = min((_timed(plain_metrics, rows, queries) for _ in range(REPEATS)), key=lambda pair: pair[1])
    if ours != loop:
        differing = sorted(name for name in ours.keys() | loop.keys() if ours.get(name) != loop.get(name))
        raise CostlError(f"The metrics disagree with the plain loop in {', '.join(differing)}: one of them is wrong.")
    return MetricsBench(len(queries), ours_s, loop_s)


def synthetic(seed: int = 0, *, count: int = QUERIES) -> tuple[list[Prediction], list[Query]]:
    """Predictions and truth of the size of QVHighlights val: some moments near a true window, others anywhere."""
    rng = np.random.default_rng(seed)
    queries = [_query(qid, rng) for qid in range(count)]
    return [_prediction(query, rng) for query in queries], queries


def plain_metrics(predictions: Sequence[Prediction], queries: Sequence[Query]) -> dict[str, Any]:
    """The official QVHighlights metrics in their simplest form: one query, threshold and rater at a time."""
    by_qid = {row.qid: row for row in predictions}
    metrics: dict[str, Any] = {}
    for name, (above, up_to) in LIMITS.items():
        pairs = [(by_qid[query.qid], [w for w in query.windows if above < w[1] - w[0] <= up_to]) for query in queries]
        pairs = [(prediction, windows) for prediction, windows in pairs if windows]
        if pairs:
            metrics[name] = _plain_moments(pairs)
    if any(query.clip_ids for query in queries):
        for name, least in (("Fair", 2), ("Good", 3), ("VeryGood", 4)):
            rows = [_plain_highlights(by_qid[query.qid], query, least) for query in queries]
            precision = [value for values, _ in rows for value in values]
            metrics[f"HL-min-{name}"] = {
                "HL-mAP": _two_decimals(np.mean(precision)),
                "HL-Hit1": _two_decimals(np.mean([hit for _, hit in rows])),
            }
    return metrics


def _official(predictions: Sequence[Prediction], queries: Sequence[Query]) -> dict[str, Any]:
    metrics = compute_metrics(predictions, queries, official=True)
    return {name: part for name, part in metrics.items() if name != "brief"}


def _timed(score: Any, *data: Any) -> tuple[dict[str, Any], float]:
    started = time.process_time()
    return score(*data), time.process_time() - started


def _query(qid: int, rng: np.random.Generator) -> Query:
    windows = []
    for _ in range(int(rng.integers(1, 4))):
        start = 2.0 * int(rng.integers(0, 70))
        windows.append((start, min(DURATION_S, start + 2.0 * int(rng.integers(1, 25)))))
    inside = sorted({clip for start, end in windows for clip in range(int(start / 2), int(end / 2))})
    ratings = rng.integers(0, 5, (len(inside), 3)).astype(float)
    return Query(qid, "a sentence", f"v{qid}", DURATION_S, tuple(windows), tuple(inside), tuple(map(tuple, ratings)))


def _prediction(query: Query, rng: np.random.Generator) -> Prediction:
    moments = []
    for score in np.sort(rng.random(MOMENTS))[::-1].round(4):
        start, end = query.windows[int(rng.integers(len(query.windows)))]
        if rng.random() < 0.5:
            start, end = rng.uniform(0, DURATION_S - 2), DURATION_S
        start = float(np.clip(start + rng.normal(0, 2), 0, DURATION_S - 2).round(2))
        moments.append((start, float(np.clip(end + rng.normal(0, 2), start + 1, DURATION_S).round(2)), float(score)))
    return Prediction(
        query.qid, query.query, query.vid, tuple(moments), tuple(rng.normal(0, 1, CLIPS).round(4).tolist())
    )


def _plain_moments(pairs: Sequence[tuple[Prediction, list[tuple[float, float]]]]) -> dict[str, Any]:
    precision = [[_plain_precision(prediction, windows, t) for t in IOU_THRESHOLDS] for prediction, windows in pairs]
    means = np.mean(precision, axis=0)
    first_ious = [_plain_first_iou(prediction, windows) for prediction, windows in pairs]
    return {
        "MR-mAP": {str(t): _two_decimals(p) for t, p in zip(IOU_THRESHOLDS, means, strict=True)}
        | {"average": _two_decimals(means.mean())},
        "MR-R1": {str(t): _two_decimals(np.mean([iou >= t for iou in first_ious])) for t in IOU_THRESHOLDS},
    }


def _plain_precision(prediction: Prediction, windows: list[tuple[float, float]], threshold: float) -> float:
    """Average precision: each moment in turn takes the free window it overlaps most, if the IoU reaches the threshold."""
    free = set(range(len(windows)))
    hits: list[bool] = []
    for moment in sorted(prediction.windows[:10], key=lambda moment: -moment[2]):
        ious = [(_plain_iou(moment, windows[i]), i) for i in free]
        best = max(ious, default=(0.0, -1))
        hits.append(best[0] >= threshold)
        free -= {best[1]} if hits[-1] else set()
    precision = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
    return sum(max(precision[rank:]) for rank, hit in enumerate(hits) if hit) / len(windows)


def _plain_iou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    # If both have no length, the published division gives NaN, which is not below any threshold.
    return shared / union if union else float("inf")


def _plain_first_iou(prediction: Prediction, windows: list[tuple[float, float]]) -> float:
    start, end, _ = prediction.windows[0]
    ious = [_plain_iou((start, end), window) for window in windows]
    window = windows[ious.index(max(ious))]
    span = max(end, window[1]) - min(start, window[0])
    return max(0.0, min(end, window[1]) - max(start, window[0])) / span


def _plain_highlights(prediction: Prediction, query: Query, least: int) -> tuple[list[float], bool]:
    """Average precision for each rater, and whether the clip with the highest score is positive for any of them."""
    clips = int(query.duration_s / 2)
    saliency = prediction.saliency
    scores = [*saliency[:clips], *[0.0] * (clips - len(saliency))]
    labels_by_rater = []
    for rater in range(len(query.saliency[0])):
        labels = [False] * clips
        for clip, ratings in zip(query.clip_ids, query.saliency, strict=True):
            labels[clip] = ratings[rater] >= least
        labels_by_rater.append(labels)
    best = max(range(len(saliency)), key=lambda clip: (saliency[clip], -clip))
    precisions = [_plain_label_precision(labels, scores) for labels in labels_by_rater]
    return precisions, best < clips and any(labels[best] for labels in labels_by_rater)


def _plain_label_precision(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Interpolated average precision; clips of equal score share a rank, and a rank counts once if it has positives."""
    order = sorted(range(len(labels)), key=lambda clip: -scores[clip])
    points = []  # of each rank: precision, and whether it has a positive
    positives = 0
    counted = 0
    for rank, clip in enumerate(order, start=1):
        positives += labels[clip]
        if rank == len(order) or scores[order[rank]] != scores[clip]:
            points.append((positives / rank, positives > counted))
            counted = positives
    best = 0.0
    total = 0.0
    hits = 0
    for precision, is_hit in reversed(points):
        best = max(best, precision)
        total += best * is_hit
        hits += is_hit
    return total / hits if hits else 0.0


def _two_decimals(fraction: Any) -> float:
    return float(f"{100 * fraction:.2f}")

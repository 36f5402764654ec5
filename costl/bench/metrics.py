"""Measures the speed of the metrics against a plain loop over queries that gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.compute import compute_metrics
from costl.metrics.moments import IOU_THRESHOLDS
from costl.pipeline.bench.measure import measure
from costl.pipeline.errors import CostlError
from costl.pipeline.formats.table import table

QUERIES, MOMENTS, CLIPS, DURATION_S = 1_550, 10, 75, 150.0  # QVHighlights val
REPEATS = 3
LIMITS = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (0, float("inf"))}
RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}


def bench_metrics(*, count: int = QUERIES) -> list[str]:
    """The table of CPU seconds of the official QVHighlights metrics and of a loop that scores one query after the other.

    Uses synthetic predictions, by default as many as QVHighlights val has. Raises CostlError if the results differ in any
    digit.
    """
    predictions, queries = synthetic(count=count)
    ours = compute_metrics(predictions, queries, official=True)
    loop = plain_metrics(predictions, queries)
    differing = [name for name in loop if ours[name] != loop[name]]
    if differing:
        raise CostlError(f"The metrics disagree with the plain loop in {', '.join(differing)}: one of them is wrong.")
    works: dict[str, Callable[[], object]] = {
        "costl": partial(compute_metrics, predictions, queries, official=True),
        "a loop per query": partial(plain_metrics, predictions, queries),
    }
    cpu_s = {name: cost.cpu_s for name, cost in measure(works, repeats=REPEATS).items()}
    rows = [(name, f"{spent_s:.3f}", f"{spent_s / cpu_s['costl']:.1f}") for name, spent_s in cpu_s.items()]
    lines = table([f"QVHighlights, official mode, {count} queries", "CPU seconds", "times as long"], rows)
    return [*lines, "Both give the same numbers, to the last digit."]


def synthetic(seed: int = 0, *, count: int = QUERIES) -> tuple[list[Prediction], list[Query]]:
    """Predictions and truth of the size of QVHighlights val: some moments near a true window, others anywhere."""
    rng = np.random.default_rng(seed)
    queries = [_query(qid, rng) for qid in range(count)]
    return [_prediction(query, rng) for query in queries], queries


def plain_metrics(predictions: Sequence[Prediction], queries: Sequence[Query]) -> dict[str, Any]:
    """The official QVHighlights metrics in their simplest form: one query, threshold and rater at a time.

    `predictions` are in the order of `queries`, their moments in the order of their scores, and no two scores are equal.
    """
    metrics: dict[str, Any] = {}
    for name, (above, up_to) in LIMITS.items():
        windows = [[w for w in query.windows if above < w[1] - w[0] <= up_to] for query in queries]
        metrics[name] = _plain_moments([pair for pair in zip(predictions, windows, strict=True) if pair[1]])
    for name, least in RATINGS.items():
        metrics[f"HL-min-{name}"] = _plain_highlights(predictions, queries, least)
    return metrics


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
    for score in np.sort(rng.random(MOMENTS))[::-1]:
        window = query.windows[int(rng.integers(len(query.windows)))]
        start, end = np.array(window) + rng.normal(0, rng.choice([2, 40]), 2)
        start = np.clip(start, 0, DURATION_S - 2)
        moments.append((float(start), float(np.clip(end, start + 1, DURATION_S)), float(score)))
    return Prediction(query.qid, query.query, query.vid, tuple(moments), tuple(rng.normal(0, 1, CLIPS).tolist()))


def _plain_moments(pairs: Sequence[tuple[Prediction, list[tuple[float, float]]]]) -> dict[str, Any]:
    precision = {}
    recall = {}
    for threshold in IOU_THRESHOLDS:
        precision[str(threshold)] = np.mean([_plain_precision(p, windows, threshold) for p, windows in pairs])
        first_ious = [max(_plain_iou(p.windows[0], window) for window in windows) for p, windows in pairs]
        recall[str(threshold)] = _two_decimals(np.mean([iou >= threshold for iou in first_ious]))
    precision["average"] = np.mean(list(precision.values()))
    return {"MR-mAP": {name: _two_decimals(value) for name, value in precision.items()}, "MR-R1": recall}


def _plain_precision(prediction: Prediction, windows: Sequence[tuple[float, float]], threshold: float) -> float:
    """Average precision: each moment in turn takes the free window it overlaps most, if the IoU reaches the threshold."""
    free = list(windows)
    hits = []
    for moment in prediction.windows:
        best = max(free, key=partial(_plain_iou, moment), default=(0.0, 0.0))
        hits.append(_plain_iou(moment, best) >= threshold)
        if hits[-1]:
            free.remove(best)
    return _interpolated_sum(hits) / len(windows)


def _plain_iou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def _plain_highlights(predictions: Sequence[Prediction], queries: Sequence[Query], least: int) -> dict[str, float]:
    """Mean average precision of all raters, and how often the best clip is positive for any rater."""
    precision = []
    hits = []
    for prediction, query in zip(predictions, queries, strict=True):
        order = sorted(range(CLIPS), key=lambda clip: -prediction.saliency[clip])
        is_hit = False
        for rater in range(3):
            positive = {c for c, ratings in zip(query.clip_ids, query.saliency, strict=True) if ratings[rater] >= least}
            labels = [clip in positive for clip in order]
            precision.append(_interpolated_sum(labels) / len(positive) if positive else 0.0)
            is_hit |= labels[0]
        hits.append(is_hit)
    return {"HL-mAP": _two_decimals(np.mean(precision)), "HL-Hit1": _two_decimals(np.mean(hits))}


def _interpolated_sum(hits: Sequence[bool]) -> float:
    """The sum over all hits of the largest precision at their rank or a later one."""
    precision = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
    return sum(max(precision[rank:]) for rank, hit in enumerate(hits) if hit)


def _two_decimals(fraction: Any) -> float:
    return float(f"{100 * fraction:.2f}")

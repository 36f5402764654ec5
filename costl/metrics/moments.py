"""Predicted moments against true windows: recall, average precision and IoU of every query, by length of the window.

Sources: `standalone_eval/eval.py` of jayleicn/moment_detr and its fork in CG-DETR and FlashVTG (R1@0.3, mIoU). Average
precision as in the ActivityNet and VOC 2011 detection tasks (all points, precision made monotone). R5 as UniVTG and
R2-Tuning report it.

Axes: b queries, m predicted moments, g windows of the ground truth, k IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costl.data.annotations import Moment, Prediction, Query

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
HEADLINES = (0.3, 0.5, 0.7)  # IoU thresholds of recall
MAP_HEADLINES = (0.5, 0.75)
# (longer than, up to) in seconds: which windows of the truth belong to a length. The published evaluator writes "full" as
# [0, 150], which to it means every window.
LENGTHS = {"full": (0.0, np.inf), "long": (30.0, np.inf), "middle": (10.0, 30.0), "short": (0.0, 10.0)}
OFFICIAL_LENGTHS = LENGTHS | {"long": (30.0, 150.0)}
WINDOWS_SCORED = 10
WINDOWS_IN_R5 = 5


@dataclass(frozen=True)
class MomentRules:
    """What an evaluator counts.

    `lengths`: the ranges of LENGTHS. `recall_at`, `recall_of_five_at`: IoU thresholds of R1 and R5.
    `as_listed`: R1 takes the first moment listed and mAP the first ten, whatever their scores; otherwise the best by score.
    `zeros_at`: a length that no true window has gets zeros at these thresholds; without any it is left out.
    """

    lengths: Mapping[str, tuple[float, float]]
    recall_at: tuple[float, ...]
    recall_of_five_at: tuple[float, ...] = ()
    mean_iou: bool = True
    as_listed: bool = False
    zeros_at: tuple[float, ...] = ()


STRICT = MomentRules(LENGTHS, (0.3, *IOU_THRESHOLDS), HEADLINES)
PUBLISHED = MomentRules(OFFICIAL_LENGTHS, IOU_THRESHOLDS, mean_iou=False, as_listed=True)
# The fork that scores Charades-STA and TACoS. Its long windows end at 150 s too, and some of TACoS are longer.
FORK = MomentRules(
    OFFICIAL_LENGTHS,
    recall_at=(0.3, 0.35, 0.4, 0.45, *IOU_THRESHOLDS),
    as_listed=True,
    zeros_at=tuple(np.linspace(0.5, 0.95, 19).tolist()),
)


@dataclass(frozen=True)
class MomentScores:
    """The scores of the n queries that have a window of some length; `query_mask` [b] is True for these."""

    query_mask: np.ndarray
    precision: np.ndarray  # [n k], average precision at each of IOU_THRESHOLDS
    first_iou: np.ndarray  # [n], of the first moment
    best_iou_of_five: np.ndarray  # [n], the highest among the first five by score


def interval_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [...] of intervals [... 2]; NaN where both have no length. The arrays broadcast."""
    intersection = np.maximum(0.0, np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]))
    with np.errstate(invalid="ignore"):
        return intersection / ((a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - intersection)


def score_moments(
    predictions: Sequence[Prediction], queries: Sequence[Query], rules: MomentRules
) -> dict[str, MomentScores]:
    """The scores for each length that some true window has (`full`: every length); empty where no query has a window.

    `predictions[i]` is for `queries[i]`; it has no windows where the query has no prediction.
    """
    ranked = [_ranked(prediction, rules) for prediction in predictions]
    moments, _ = _padded([[moment[:2] for moment in row] for row in ranked])
    truth, truth_mask = _padded([query.windows for query in queries])
    if not truth_mask.any():
        return {}
    iou = interval_iou(moments[:, :, None], truth[:, None])  # [b m g]
    length_s = truth[..., 1] - truth[..., 0]
    listed = [p.windows if rules.as_listed else row for p, row in zip(predictions, ranked, strict=True)]
    # [b 1 2], the moment that R1 takes; [0, 0] where there is none
    first = np.array([[row[0][:2] if row else (0.0, 0.0)] for row in listed])
    scores = {}
    for name, (above_s, up_to_s) in rules.lengths.items():
        mask = truth_mask & (above_s < length_s) & (length_s <= up_to_s)
        rows = mask.any(axis=1)
        if rows.any() or rules.zeros_at:
            scores[name] = MomentScores(
                query_mask=rows,
                precision=_average_precisions(iou[rows], mask[rows]),
                first_iou=_best_ious(first[rows], truth[rows], mask[rows])[:, 0],
                best_iou_of_five=_best_ious(moments[rows, :WINDOWS_IN_R5], truth[rows], mask[rows]).max(axis=1),
            )
    return scores


def moment_metrics(scores: MomentScores, rules: MomentRules) -> dict[str, Any]:
    """MR-mAP and MR-R1 of one length at every threshold, and MR-mIoU and MR-R5 where the rules have them; percent."""
    if not scores.query_mask.any():
        zeros = dict.fromkeys([*map(str, rules.zeros_at), "average"], 0.0)
        return {"MR-mAP": zeros, "MR-R1": dict(zeros)}
    precision = scores.precision.mean(axis=0)
    mean_precision = {str(t): 100 * float(p) for t, p in zip(IOU_THRESHOLDS, precision, strict=True)}
    metrics: dict[str, Any] = {
        "MR-mAP": mean_precision | {"average": 100 * float(precision.mean())},
        "MR-R1": {str(t): 100 * float(np.mean(scores.first_iou >= t)) for t in rules.recall_at},
    }
    if rules.mean_iou:
        metrics["MR-mIoU"] = 100 * float(scores.first_iou.mean())
    if rules.recall_of_five_at:
        metrics["MR-R5"] = {str(t): 100 * float(np.mean(scores.best_iou_of_five >= t)) for t in rules.recall_of_five_at}
    return metrics


def headline_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers of what `moment_metrics` returned, named as papers name them: R1@0.5, mAP and others."""
    numbers = {f"R1@{t}": metrics["MR-R1"].get(str(t)) for t in HEADLINES}
    numbers |= {f"R5@{t}": value for t, value in metrics.get("MR-R5", {}).items()}
    numbers |= {f"mAP@{t}": metrics["MR-mAP"].get(str(t)) for t in MAP_HEADLINES}
    numbers |= {"mAP": metrics["MR-mAP"]["average"], "mIoU": metrics.get("MR-mIoU")}
    return {name: value for name, value in numbers.items() if value is not None}


def headline_values(scores: MomentScores, rules: MomentRules) -> dict[str, np.ndarray]:
    """The value of every query [b] for each of `headline_numbers`, percent; NaN for a query that does not count for it.
    The mean of the other values is the number."""
    values = {f"R1@{t}": scores.first_iou >= t for t in HEADLINES if t in rules.recall_at}
    values |= {f"R5@{t}": scores.best_iou_of_five >= t for t in rules.recall_of_five_at}
    values |= {f"mAP@{t}": scores.precision[:, IOU_THRESHOLDS.index(t)] for t in MAP_HEADLINES}
    values |= {"mAP": scores.precision.mean(axis=1)}
    values |= {"mIoU": scores.first_iou} if rules.mean_iou else {}
    by_query = {}
    for name, value in values.items():
        by_query[name] = np.full(len(scores.query_mask), np.nan)
        by_query[name][scores.query_mask] = 100.0 * value
    return by_query


def _ranked(prediction: Prediction, rules: MomentRules) -> list[Moment]:
    windows = prediction.windows[:WINDOWS_SCORED] if rules.as_listed else prediction.windows
    return sorted(windows, key=lambda moment: -moment[2])[:WINDOWS_SCORED]  # equal scores keep their order


def _padded(rows: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Intervals [b n 2] and their mask [b n]; padding is [-1, -1], which overlaps nothing."""
    longest = max(1, max(len(row) for row in rows))
    intervals = np.full((len(rows), longest, 2), -1.0)
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    intervals[mask] = np.concatenate([np.reshape(row, (-1, 2)) for row in rows])
    return intervals, mask


def _average_precisions(iou: np.ndarray, truth_mask: np.ndarray) -> np.ndarray:
    """Average precision [b k] at the k thresholds from iou [b m g] of ranked moments and truth_mask [b g]."""
    hits = _greedy_hits(iou, truth_mask)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)[None, :, None]
    # All-point interpolation: at each recall the best precision reached there or later. Padded moments are misses at the
    # end of the list and change nothing.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (best * hits).sum(axis=1) / truth_mask.sum(axis=1)[:, None]


def _greedy_hits(iou: np.ndarray, truth_mask: np.ndarray) -> np.ndarray:
    """bool [b m k], True for a moment that hits a window: in order of rank each takes the free window it overlaps most."""
    thresholds = np.array(IOU_THRESHOLDS)
    # The published evaluator tests `iou < threshold`, which is False for NaN: a hit. Strict mode has no NaN.
    iou = np.where(np.isnan(iou), np.inf, iou)
    free = np.repeat(truth_mask[:, None, :], len(thresholds), axis=1)  # [b k g]
    hits = np.zeros((*iou.shape[:2], len(thresholds)), dtype=bool)
    for rank in range(iou.shape[1]):
        free_iou = np.where(free, iou[:, rank, None, :], -1.0)
        # Of equal overlaps the last window, as in the published evaluator.
        best = free_iou.shape[2] - 1 - free_iou[:, :, ::-1].argmax(axis=2)[..., None]
        hits[:, rank] = np.take_along_axis(free_iou, best, axis=2)[..., 0] >= thresholds
        still_free = np.take_along_axis(free, best, axis=2) & ~hits[:, rank, :, None]
        np.put_along_axis(free, best, still_free, axis=2)
    return hits


def _best_ious(moments: np.ndarray, truth: np.ndarray, truth_mask: np.ndarray) -> np.ndarray:
    """IoU [b m] of each moment [b m 2] with the window of the truth [b g 2] that it overlaps most."""
    iou = np.where(truth_mask[:, None], interval_iou(moments[:, :, None], truth[:, None]), -1.0)
    window = np.take_along_axis(truth, iou.argmax(axis=2)[..., None], axis=1)
    # The union from the outer ends, as published. It differs from `interval_iou` in the last bit, which decides whether an
    # IoU of just 0.5 counts.
    intersection = np.minimum(moments[..., 1], window[..., 1]) - np.maximum(moments[..., 0], window[..., 0])
    union = np.maximum(moments[..., 1], window[..., 1]) - np.minimum(moments[..., 0], window[..., 0])
    return np.maximum(0.0, intersection) / union

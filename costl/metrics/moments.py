"""Moments against true windows: recall, average precision and overlap of every query, by length of the window.

Sources: `standalone_eval/eval.py` of jayleicn/moment_detr and its fork in CG-DETR and FlashVTG (R1@0.3, mIoU); average
precision after the ActivityNet and VOC 2011 detection tasks (all points, precision made monotone); R5 as UniVTG and
R2-Tuning report it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
HEADLINES = (0.3, 0.5, 0.7)  # of recall
# Which windows of the truth count: those longer than the one and no longer than the other, seconds. The published
# evaluator writes "full" as [0, 150] and means all of them.
LENGTHS = {"full": (0.0, np.inf), "long": (30.0, np.inf), "middle": (10.0, 30.0), "short": (0.0, 10.0)}
OFFICIAL_LENGTHS = LENGTHS | {"long": (30.0, 150.0)}
WINDOWS_SCORED = 10
WINDOWS_IN_R5 = 5


@dataclass(frozen=True)
class MomentRules:
    """What one evaluator counts.

    `as_listed`: R1 takes the first moment listed and mAP the first ten, whatever their scores; otherwise by score.
    `zeros_at`: a length that no true window has is zero at these thresholds; without any it is left out.
    """

    lengths: Mapping[str, tuple[float, float]]
    recall_at: tuple[float, ...]
    recall_of_five_at: tuple[float, ...] = ()
    mean_iou: bool = True
    as_listed: bool = False
    zeros_at: tuple[float, ...] = ()


STRICT = MomentRules(LENGTHS, (0.3, *IOU_THRESHOLDS), HEADLINES)
PUBLISHED = MomentRules(OFFICIAL_LENGTHS, IOU_THRESHOLDS, mean_iou=False, as_listed=True)
# The fork by which Charades-STA and TACoS are scored. Its long windows end at 150 s too, which TACoS exceeds.
FORK = MomentRules(
    OFFICIAL_LENGTHS,
    recall_at=(0.3, 0.35, 0.4, 0.45, *IOU_THRESHOLDS),
    as_listed=True,
    zeros_at=tuple(np.linspace(0.5, 0.95, 19).tolist()),
)


@dataclass(frozen=True)
class MomentScores:
    """The n queries that have a window of some length: `counted` [q] says which they are among all."""

    counted: np.ndarray
    precision: np.ndarray  # [n k], average precision at each of IOU_THRESHOLDS
    overlap: np.ndarray  # [n], IoU of the first moment
    overlap_of_five: np.ndarray  # [n], the best IoU among the first five by score


def interval_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of intervals [... 2] over the length of their union [...]; NaN where that length is zero."""
    shared = np.maximum(0.0, np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]))
    with np.errstate(invalid="ignore"):
        return shared / ((a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared)


def score_moments(
    answers: Sequence[Prediction], queries: Sequence[Query], rules: MomentRules
) -> dict[str, MomentScores]:
    """The scores for each length that some window has (in `full`: all); nothing where no query has a window.

    `answers[i]` is the prediction for `queries[i]`, empty where there is none.
    """
    labelled = np.array([bool(query.windows) for query in queries])
    if not labelled.any():
        return {}
    pairs = [(answer, query) for answer, query in zip(answers, queries, strict=True) if query.windows]
    matches = _match(pairs, rules)
    result = {}
    for name, (above_s, up_to_s) in rules.lengths.items():
        real = matches.real & (above_s < matches.length_s) & (matches.length_s <= up_to_s)
        if real.any() or rules.zeros_at:
            result[name] = _length_scores(matches, real, labelled)
    return result


def moment_metrics(scores: Mapping[str, MomentScores], rules: MomentRules) -> dict[str, Any]:
    """For each length MR-mAP and MR-R1 at every threshold (and MR-mIoU, MR-R5 where the rules have them), percent."""
    return {name: _length_metrics(length, rules) for name, length in scores.items()}


def moment_headlines(scores: Mapping[str, MomentScores], rules: MomentRules) -> dict[str, np.ndarray]:
    """Each headline number as what every query [q] adds to it, percent: NaN where it does not count; the mean of the
    others is the number."""
    if not scores:
        return {}
    full = scores["full"]
    values = {f"MR-full-R1@{t}": full.overlap >= t for t in HEADLINES if t in rules.recall_at}
    values |= {f"MR-full-R5@{t}": full.overlap_of_five >= t for t in rules.recall_of_five_at}
    values |= {"MR-full-mAP": full.precision.mean(axis=1)}
    values |= {f"MR-full-mAP@{t}": full.precision[:, IOU_THRESHOLDS.index(t)] for t in (0.5, 0.75)}
    values |= {"MR-full-mIoU": full.overlap} if rules.mean_iou else {}
    spread = {name: _spread(value, full.counted) for name, value in values.items()}
    others = {name: length for name, length in scores.items() if name != "full" and length.counted.any()}
    return spread | {
        f"MR-{name}-mAP": _spread(length.precision.mean(axis=1), length.counted) for name, length in others.items()
    }


def moment_brief(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The headline numbers among what `moment_metrics` gave, under the field's names."""
    if not metrics:
        return {}
    full = metrics["full"]
    brief = {f"MR-full-R1@{t}": full["MR-R1"][str(t)] for t in HEADLINES if str(t) in full["MR-R1"]}
    brief |= {f"MR-full-R5@{t}": value for t, value in full.get("MR-R5", {}).items()}
    brief |= {"MR-full-mAP": full["MR-mAP"]["average"]}
    brief |= {f"MR-full-mAP@{t}": full["MR-mAP"][t] for t in ("0.5", "0.75")}
    brief |= {"MR-full-mIoU": full["MR-mIoU"]} if "MR-mIoU" in full else {}
    return brief | {f"MR-{name}-mAP": metrics[name]["MR-mAP"]["average"] for name in metrics if name != "full"}


def _spread(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    spread = np.full(len(counted), np.nan)
    spread[counted] = 100.0 * values
    return spread


@dataclass(frozen=True)
class _Matches:
    """Every moment against every window of the truth: q queries, m moments, g windows, padded to the longest."""

    iou: np.ndarray  # [q m g]; moments by falling score; NaN where both have no length
    real: np.ndarray  # [q g], True where there is a window
    length_s: np.ndarray  # [q g]
    first: np.ndarray  # [q 1 2], the moment that R1 takes; [0, 0] where there is none
    moments: np.ndarray  # [q m 2]
    truth: np.ndarray  # [q g 2]


def _match(pairs: Sequence[tuple[Prediction, Query]], rules: MomentRules) -> _Matches:
    ranked = [_ranked(answer, rules) for answer, _ in pairs]
    moments, _ = _padded([[moment[:2] for moment in row] for row in ranked])
    truth, real = _padded([query.windows for _, query in pairs])
    firsts = [answer.windows if rules.as_listed else row for (answer, _), row in zip(pairs, ranked, strict=True)]
    return _Matches(
        iou=interval_iou(moments[:, :, None], truth[:, None]),
        real=real,
        length_s=truth[..., 1] - truth[..., 0],
        first=np.array([[row[0][:2] if row else (0.0, 0.0)] for row in firsts]),
        moments=moments,
        truth=truth,
    )


def _ranked(answer: Prediction, rules: MomentRules) -> list[tuple[float, float, float]]:
    windows = answer.windows[:WINDOWS_SCORED] if rules.as_listed else answer.windows
    return sorted(windows, key=lambda moment: -moment[2])[:WINDOWS_SCORED]  # equal scores keep their order


def _padded(rows: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Intervals [q n 2] and which of them are real [q n]; the others are [-1, -1], which overlaps nothing."""
    longest = max(1, max(len(row) for row in rows))
    intervals = np.full((len(rows), longest, 2), -1.0)
    real = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    intervals[real] = np.concatenate([np.reshape(row, (-1, 2)) for row in rows])
    return intervals, real


def _length_scores(matches: _Matches, real: np.ndarray, labelled: np.ndarray) -> MomentScores:
    some = real.any(axis=1)  # a query without a window of this length is left out
    counted = labelled.copy()
    counted[labelled] = some
    truth, real = matches.truth[some], real[some]
    return MomentScores(
        counted=counted,
        precision=_average_precisions(matches.iou[some], real),
        overlap=_best_overlaps(matches.first[some], truth, real)[:, 0],
        overlap_of_five=_best_overlaps(matches.moments[some, :WINDOWS_IN_R5], truth, real).max(axis=1),
    )


def _length_metrics(scores: MomentScores, rules: MomentRules) -> dict[str, Any]:
    if not scores.counted.any():
        zeros = dict.fromkeys([*map(str, rules.zeros_at), "average"], 0.0)
        return {"MR-mAP": zeros, "MR-R1": dict(zeros)}
    precision = scores.precision.mean(axis=0)
    mean_iou = {"MR-mIoU": 100 * float(scores.overlap.mean())} if rules.mean_iou else {}
    of_five = {str(t): 100 * float(np.mean(scores.overlap_of_five >= t)) for t in rules.recall_of_five_at}
    return {
        **mean_iou,
        "MR-mAP": {str(t): 100 * float(p) for t, p in zip(IOU_THRESHOLDS, precision, strict=True)}
        | {"average": 100 * float(precision.mean())},
        "MR-R1": {str(t): 100 * float(np.mean(scores.overlap >= t)) for t in rules.recall_at},
        **({"MR-R5": of_five} if of_five else {}),
    }


def _average_precisions(iou: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Average precision [q k] of ranked moments, iou [q m g], at the k thresholds; real [q g] tells windows to find."""
    hits = _greedy_hits(iou, real)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)[None, :, None]
    # All-point interpolation: at each recall, the best precision reached there or later. Padded moments are misses at
    # the end of the list and change nothing.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (best * hits).sum(axis=1) / real.sum(axis=1)[:, None]


def _greedy_hits(iou: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Which moments find a window [q m k]: in order of rank, each takes the free window it overlaps most."""
    thresholds = np.array(IOU_THRESHOLDS)
    # The published evaluator asks "iou < threshold", which NaN answers with no: a hit. Strict mode has no NaN.
    iou = np.where(np.isnan(iou), np.inf, iou)
    free = np.repeat(real[:, None, :], len(thresholds), axis=1)
    hits = np.zeros((*iou.shape[:2], len(thresholds)), dtype=bool)
    for rank in range(iou.shape[1]):
        overlap = np.where(free, iou[:, rank, None, :], -1.0)
        # Of equal overlaps the last window, as in the published evaluator.
        taken = overlap.shape[2] - 1 - overlap[:, :, ::-1].argmax(axis=2)[..., None]
        hits[:, rank] = np.take_along_axis(overlap, taken, axis=2)[..., 0] >= thresholds
        still_free = np.take_along_axis(free, taken, axis=2) & ~hits[:, rank, :, None]
        np.put_along_axis(free, taken, still_free, axis=2)
    return hits


def _best_overlaps(moments: np.ndarray, truth: np.ndarray, real: np.ndarray) -> np.ndarray:
    """IoU [q m] of each moment [q m 2] with the window [q g 2] it overlaps most."""
    iou = np.where(real[:, None], interval_iou(moments[:, :, None], truth[:, None]), -1.0)
    window = np.take_along_axis(truth, iou.argmax(axis=2)[..., None], axis=1)
    # From the outer ends, as published: the same but for the last bit, which decides whether an IoU of just 0.5 counts.
    shared = np.minimum(moments[..., 1], window[..., 1]) - np.maximum(moments[..., 0], window[..., 0])
    span = np.maximum(moments[..., 1], window[..., 1]) - np.minimum(moments[..., 0], window[..., 0])
    return np.maximum(0.0, shared) / span

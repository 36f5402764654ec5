"""Saliency against ratings: QVHighlights' HIT@1 and mAP, TVSum's top-5 mAP and YouTube Highlights' mAP, query by query.

Sources: `standalone_eval/eval.py` of jayleicn/moment_detr; TVSum and YouTube Highlights as UMT, QD-DETR, CG-DETR and
R2-Tuning score them (R2-Tuning: `datasets/tvsum.py`, `datasets/youtube.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.pipeline.errors import UsageError
from costl.pipeline.grid import Grid

MIN_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
OFFICIAL_CLIP_S = 2.0
MIDDLE_RATING = 2  # of YouTube Highlights: above it, a clip is a highlight
TOP = 5


@dataclass(frozen=True)
class RatingRules:
    """How a ranking of clips is scored: the name of the number, how many clips from the top, what is a positive."""

    name: str
    top: int | None
    above_median: bool


TVSUM = RatingRules(f"HL-top{TOP}-mAP", TOP, above_median=True)
YOUTUBE = RatingRules("HL-mAP", None, above_median=False)


def clips_of(query: Query, clip_s: float) -> int:
    """How many saliency scores are expected: one for each rated window, or else one every `clip_s` seconds."""
    return len(query.rated_s) or Grid(1 / clip_s, query.duration_s).clips


def score_ratings(
    answers: Sequence[Prediction], queries: Sequence[Query], *, official: bool, clip_s: float
) -> dict[str, np.ndarray]:
    """QVHighlights: {HL-min-*: values [q 2] of mAP and HIT@1 in [0, 1]}, NaN for a query without ratings."""
    if not any(query.clip_ids for query in queries):
        return {}
    values = np.full((len(queries), 2, len(MIN_RATINGS)), np.nan)
    for i, (answer, query) in enumerate(zip(answers, queries, strict=True)):
        if query.clip_ids:
            clips = int(query.duration_s / OFFICIAL_CLIP_S) if official else clips_of(query, clip_s)
            values[i] = _precision_and_hit(answer.saliency, _ratings(query, clips))
    return {f"HL-min-{name}": values[:, :, i] for i, name in enumerate(MIN_RATINGS)}


def score_rankings(answers: Sequence[Prediction], queries: Sequence[Query], rules: RatingRules) -> np.ndarray:
    """TVSum and YouTube Highlights: average precision [q] in [0, 1], NaN for a query without ratings.

    Only rated clips are ranked. A prediction that ends before the last of them ranks those that it reaches, which
    strict mode never lets happen.
    """
    return np.array([_ranking_precision(a.saliency, q, rules) for a, q in zip(answers, queries, strict=True)])


def _ratings(query: Query, clips: int) -> np.ndarray:
    """Ratings [t r] of all clips; a clip that nobody rated counts 0."""
    if max(query.clip_ids) >= clips:
        raise UsageError(f"query {query.qid!r}: clip {max(query.clip_ids)} is rated, but its video has {clips} clips.")
    ratings = np.zeros((clips, len(query.saliency[0])))
    ratings[list(query.clip_ids)] = query.saliency
    return ratings


def _precision_and_hit(saliency: Sequence[float], ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mAP [3], HIT@1 [3]) of one query, for each of MIN_RATINGS; zero without a prediction."""
    levels = np.array(list(MIN_RATINGS.values()))
    if not saliency:
        return np.zeros(len(levels)), np.zeros(len(levels))
    labels = ratings[:, None, :] >= levels[:, None]  # [t 3 r]
    scores = np.zeros(len(ratings))
    scores[: len(saliency)] = saliency[: len(ratings)]
    precision = _label_precisions(labels.reshape(len(ratings), -1), scores).reshape(labels.shape[1:])
    best = int(np.argmax(saliency))
    hit = labels[best].any(axis=1) if best < len(ratings) else np.zeros(len(levels))
    return precision.mean(axis=1), hit.astype(float)


def _label_precisions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Interpolated average precision [k] of each column of labels [t k], clips ranked by scores [t].

    Clips of equal score stand at one rank together, and each rank that finds something counts once. No positive: 0.
    """
    order = np.argsort(-scores)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(labels[order], axis=0)[last]
    best = np.maximum.accumulate((found / (last + 1)[:, None])[::-1], axis=0)[::-1]
    finds = np.diff(found, axis=0, prepend=0) > 0
    return (best * finds).sum(axis=0) / np.maximum(1, finds.sum(axis=0))


def _ranking_precision(saliency: Sequence[float], query: Query, rules: RatingRules) -> float:
    if not query.clip_ids:
        return float("nan")
    reached = [i for i, clip in enumerate(query.clip_ids) if clip < len(saliency)]
    if not reached:
        return 0.0
    ratings = np.array(query.saliency)
    positive = ratings > (_lower_median(ratings) if rules.above_median else MIDDLE_RATING)
    scores = np.array(saliency)[np.array(query.clip_ids)[reached]]
    # Clips of equal score keep their order in time; published code leaves it open.
    ranked = positive[reached][np.argsort(-scores, kind="stable")[: rules.top]]
    return float(added_up(_trapezoid_precision(ranked)) / ratings.shape[1])


def _lower_median(ratings: np.ndarray) -> np.ndarray:
    """Of each column [t r]: the middle value, of two the lower."""
    return np.sort(ratings, axis=0)[(len(ratings) - 1) // 2]


def _trapezoid_precision(ranked: np.ndarray) -> np.ndarray:
    """Area [r] under precision over recall of ranked labels [n r], by trapezoids from (recall 0, precision 1).

    Recall is of the positives among those ranked. No positive: 0.
    """
    found = np.cumsum(ranked, axis=0)
    precision = found / np.arange(1, len(ranked) + 1)[:, None]
    recall = found / np.maximum(1, found[-1])
    before = np.vstack([np.ones(ranked.shape[1]), precision[:-1]])
    return added_up(np.diff(recall, axis=0, prepend=0) * (before + precision) / 2)


def added_up(values: np.ndarray) -> np.ndarray:
    """The sum along the first axis, one after the other as published code adds: the last bit decides how a number that
    ends in 5 is rounded."""
    return np.cumsum(values, axis=0)[-1]

"""Saliency scores against ratings: HIT@1 and mAP of QVHighlights, top-5 mAP of TVSum, mAP of YouTube Highlights.

Sources: `standalone_eval/eval.py` of jayleicn/moment_detr for QVHighlights; for TVSum and YouTube Highlights the protocol
of UMT, QD-DETR, CG-DETR and R2-Tuning (in R2-Tuning's code `datasets/tvsum.py` and `datasets/youtube.py`).

Axes: b queries, t clips, r raters, k thresholds of a rating or ranked clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import expected_clips

MIN_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
OFFICIAL_CLIP_S = 2.0
MIDDLE_RATING = 2  # of YouTube Highlights: a clip with a rating above it is a highlight
TOP = 5


@dataclass(frozen=True)
class RankingRules:
    """How a ranking of clips is scored.

    `name` is the name of the number. `top`: only so many clips from the top of the ranking count, None for all.
    `above_median`: a clip is positive for a rater who rates it above the median of all clips, otherwise where its rating
    is above MIDDLE_RATING.
    """

    name: str
    top: int | None
    above_median: bool


TVSUM = RankingRules(f"HL-top{TOP}-mAP", TOP, above_median=True)
YOUTUBE = RankingRules("HL-mAP", None, above_median=False)


def score_ratings(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, official: bool, clip_s: float
) -> dict[str, np.ndarray]:
    """QVHighlights: {HL-min-*: values [b 2], mAP and HIT@1 of each query in [0, 1]}; NaN for a query without ratings.

    A clip is positive for a rater who gives it at least the rating of that name in MIN_RATINGS. mAP is the mean over the
    raters; HIT@1 is 1 where any rater likes the clip with the highest score. Official: as many clips as the published
    evaluator has, int(duration / 2). `predictions[i]` is for `queries[i]`.
    """
    if not any(query.clip_ids for query in queries):
        return {}
    values = np.full((len(queries), 2, len(MIN_RATINGS)), np.nan)
    for i, (prediction, query) in enumerate(zip(predictions, queries, strict=True)):
        if query.clip_ids:
            clips = int(query.duration_s / OFFICIAL_CLIP_S) if official else expected_clips(query, clip_s)
            values[i] = _precision_and_hit(prediction.saliency, _ratings(query, clips))
    return {f"HL-min-{name}": values[:, :, i] for i, name in enumerate(MIN_RATINGS)}


def score_rankings(predictions: Sequence[Prediction], queries: Sequence[Query], rules: RankingRules) -> np.ndarray:
    """TVSum and YouTube Highlights: average precision [b] in [0, 1], NaN for a query without ratings.

    Only rated clips are ranked. A prediction with too few scores ranks the clips that it has scores for; strict mode
    refuses it before. `predictions[i]` is for `queries[i]`.
    """
    return np.array([_ranking_precision(p.saliency, q, rules) for p, q in zip(predictions, queries, strict=True)])


def _ratings(query: Query, clips: int) -> np.ndarray:
    """Ratings [t r] of all clips, 0 for a clip without a rating."""
    if max(query.clip_ids) >= clips:
        raise UsageError(f"query {query.qid!r}: clip {max(query.clip_ids)} is rated, but its video has {clips} clips.")
    ratings = np.zeros((clips, len(query.saliency[0])))
    ratings[list(query.clip_ids)] = query.saliency
    return ratings


def _precision_and_hit(saliency: Sequence[float], ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mAP [k] and HIT@1 [k] of one query at the k thresholds of MIN_RATINGS; zero without a prediction."""
    thresholds = np.array(list(MIN_RATINGS.values()))
    if not saliency:
        return np.zeros(len(thresholds)), np.zeros(len(thresholds))
    labels = ratings[:, None, :] >= thresholds[:, None]  # [t k r]
    scores = np.zeros(len(ratings))
    scores[: len(saliency)] = saliency[: len(ratings)]
    precision = _label_precisions(labels.reshape(len(ratings), -1), scores).reshape(labels.shape[1:])
    best = int(np.argmax(saliency))
    hit = labels[best].any(axis=1) if best < len(ratings) else np.zeros(len(thresholds))
    return precision.mean(axis=1), hit.astype(float)


def _label_precisions(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Interpolated average precision of each column of labels [t n], clips ranked by scores [t].

    Clips of equal score share a rank, and a rank counts once however many positives it has. Without a positive: 0.
    """
    order = np.argsort(-scores)
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true_positives = np.cumsum(labels[order], axis=0)[last]
    precision = true_positives / (last + 1)[:, None]
    best_from_here = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    hits = np.diff(true_positives, axis=0, prepend=0) > 0
    return (best_from_here * hits).sum(axis=0) / np.maximum(1, hits.sum(axis=0))


def _ranking_precision(saliency: Sequence[float], query: Query, rules: RankingRules) -> float:
    if not query.clip_ids:
        return float("nan")
    scored = [i for i, clip in enumerate(query.clip_ids) if clip < len(saliency)]
    if not scored:
        return 0.0
    ratings = np.array(query.saliency)
    # Of two middle ratings the lower one is the median.
    median = np.quantile(ratings, 0.5, axis=0, method="lower")
    positive = ratings > (median if rules.above_median else MIDDLE_RATING)
    scores = np.array(saliency)[np.array(query.clip_ids)[scored]]
    # Clips of equal score keep their order in time. The published code leaves their order undefined.
    ranked = positive[scored][np.argsort(-scores, kind="stable")[: rules.top]]
    return float(sequential_sum(_trapezoid_precision(ranked)) / ratings.shape[1])


def _trapezoid_precision(ranked: np.ndarray) -> np.ndarray:
    """Area [r] under precision over recall of ranked labels [k r], by trapezoids from (recall 0, precision 1).

    Recall is relative to the positives among the ranked clips. Without a positive: 0.
    """
    true_positives = np.cumsum(ranked, axis=0)
    precision = true_positives / np.arange(1, len(ranked) + 1)[:, None]
    recall = true_positives / np.maximum(1, true_positives[-1])
    previous = np.vstack([np.ones(ranked.shape[1]), precision[:-1]])
    return sequential_sum(np.diff(recall, axis=0, prepend=0) * (previous + precision) / 2)


def sequential_sum(values: np.ndarray) -> np.ndarray:
    """The sum along the first axis, one value after the other as the published code adds them: the last bit decides how
    a number that ends in 5 is rounded."""
    return np.cumsum(values, axis=0)[-1]

"""Rejection: how well a score separates the queries that have an answer from those that have none.

AUROC is the probability that a present query scores higher than an absent one, where equal scores count one half (Hanley and
McNeil, The meaning and use of the area under a ROC curve, Radiology 1982). The share refused at 95 % recall is the true
negative rate at a true positive rate of 95 %, one minus the FPR95 of out-of-distribution detection (Liang et al., ODIN,
ICLR 2018).

Axes: b queries in the order of their scores, r resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from costl.metrics.bootstrap import percentile_interval, resampled_counts

RECALL_PERCENT = 95


def rejection_metrics(present: Sequence[float], absent: Sequence[float]) -> dict[str, Any]:
    """`AUROC` and `refused` in percent, `intervals` of both, and the numbers of `present` and `absent` queries.

    `present` and `absent` have the score of the best answer to each query, -inf without an answer. `refused` is the share of
    absent queries below the highest threshold that at least 95 % of the present ones reach. The intervals are 95 % bootstrap
    intervals over queries, present and absent ones resampled separately. Empty where there is no present or no absent query.
    """
    if not (present and absent):
        return {}
    scores = np.array([*present, *absent], dtype=np.float64)
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    is_present = order < len(present)
    auroc, refused = _auroc_and_refused(scores, is_present, np.ones((1, len(scores))))[0].tolist()
    metrics = {"AUROC": auroc, "refused": refused, "present": len(present), "absent": len(absent)}
    return metrics | {"intervals": _intervals(scores, is_present)}


def _intervals(scores: np.ndarray, is_present: np.ndarray) -> dict[str, list[float]]:
    """The interval of both numbers; none with a single present or absent query."""
    if min(is_present.sum(), (~is_present).sum()) < 2:
        return {}
    groups = np.where(is_present, "present", "absent").tolist()
    numbers = [_auroc_and_refused(scores, is_present, counts) for counts in resampled_counts(groups, len(scores))]
    low, high = percentile_interval(np.concatenate(numbers)).tolist()
    return {name: [low[i], high[i]] for i, name in enumerate(("AUROC", "refused"))}


def _auroc_and_refused(scores: np.ndarray, is_present: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUROC and the share refused [r 2] in percent; `scores` [b] rise, query b occurs `counts` [r b] times in each resample."""
    present = counts * is_present
    absent = counts * ~is_present
    absent_before = np.pad(absent.cumsum(axis=1), ((0, 0), (1, 0)))  # [r b+1]
    below = absent_before[:, np.searchsorted(scores, scores, "left")]
    tied = absent_before[:, np.searchsorted(scores, scores, "right")] - below
    present_count = present.sum(axis=1)
    absent_count = absent.sum(axis=1)
    auroc = (present * (below + tied / 2)).sum(axis=1) / (present_count * absent_count)
    reached = present[:, ::-1].cumsum(axis=1)[:, ::-1]  # present queries at this position or above
    needed = np.ceil(RECALL_PERCENT * present_count / 100)
    threshold_index = (reached >= needed[:, None]).sum(axis=1) - 1
    refused = np.take_along_axis(below, threshold_index[:, None], axis=1)[:, 0] / absent_count
    return 100 * np.stack([auroc, refused], axis=1)

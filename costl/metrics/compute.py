"""Computes the metrics of each benchmark from predictions and annotations, in a strict mode and exactly as published.

The formulas and their sources are in `moments` and `highlights`. All numbers are percentages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.checks import check_arguments, check_official, check_strict, index_by_qid
from costl.metrics.highlights import TVSUM, YOUTUBE, RankingRules, score_rankings, score_ratings, sequential_sum
from costl.metrics.moments import (
    FORK,
    PUBLISHED,
    STRICT,
    MomentRules,
    headline_numbers,
    headline_values,
    moment_metrics,
    score_moments,
)
from costl.pipeline.errors import UsageError, first_few

# How a benchmark is scored: by moments, and highlights where clips are rated, or only by the ranking of clips.
BENCHMARKS: Mapping[str, MomentRules | RankingRules] = {
    "qvhighlights": PUBLISHED,
    "charades": FORK,
    "tacos": FORK,
    "tvsum": TVSUM,
    "youtube-highlights": YOUTUBE,
}


def compute_metrics(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    *,
    official: bool = False,
    clip_s: float = 2.0,
    benchmark: str = "qvhighlights",
) -> dict[str, Any]:
    """`brief` (the headline numbers) and all details, in percent, with the keys of the published evaluator's JSON.

    qvhighlights, charades, tacos: R1, mAP and mIoU of moments by length of the window, HIT@1 and mAP of highlights.
    tvsum and youtube-highlights: mAP of the ranking of clips, averaged over domains; `domains` has each of them.

    Strict mode, the default: every query counts exactly once, and a query without a prediction counts 0. Moments are
    ranked by score. Nothing is rounded. R1@0.3, R5 and mIoU are added. `notes` lists where the published evaluator
    would give another number. Predictions have a saliency score every `clip_s` seconds.

    Official mode: the published evaluator to the last digit, `standalone_eval/eval.py` of jayleicn/moment_detr for
    qvhighlights and its fork in CG-DETR and FlashVTG for charades and tacos. R1 takes the first moment listed, whatever
    its score; mAP takes the first ten. Saliency lists are cut or filled with zeros to int(duration / 2) clips. Numbers
    have two decimals (rankings: three, from five of the fraction). The "long" windows of the fork end at 150 s (windows
    of TACoS reach 843 s; strict mode has no upper end), and it gives zeros for a length that no window has.

    Both modes leave out what has no labels (no saliency in Charades-STA, no window of some length), where the published
    code stops with an error.

    Raises UsageError for arguments of another type. Raises UsageError that names the query: in both modes for a qid that is
    unknown or occurs twice; in strict mode for a window that is reversed or outside its video, for the id of another video,
    and for a saliency list of the wrong length; in official mode for whatever the published code cannot score (a query
    without prediction or labels).
    """
    return measure(predictions, queries, official=official, clip_s=clip_s, benchmark=benchmark)[0]


def measure(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    *,
    official: bool = False,
    clip_s: float = 2.0,
    benchmark: str = "qvhighlights",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The result of `compute_metrics`, and the value of every query [b] for each headline number.

    The values are in percent and in the order of `queries`; a query that does not count for a number is NaN there. The
    mean of the other values is the number: where a number is a mean over domains, the values are weighted by the size of
    the domain. Arguments and errors are those of `compute_metrics`.
    """
    check_arguments(predictions, queries, clip_s)
    rules = benchmark_rules(benchmark)
    ratings_only = isinstance(rules, RankingRules)
    by_qid = index_by_qid(predictions, queries, benchmark=benchmark, ratings_only=ratings_only)
    if official:
        check_official(by_qid, queries, ratings_only=ratings_only)
    else:
        check_strict(by_qid, queries, ratings_only=ratings_only, clip_s=clip_s)
    ordered = [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]
    if isinstance(rules, RankingRules):
        metrics, values = _ranking_metrics(ordered, queries, rules, official=official)
    else:
        metrics, values = _task_metrics(ordered, queries, rules, official=official, clip_s=clip_s)
    notes = {} if official else {"notes": _notes(by_qid, queries, ratings_only=ratings_only)}
    return metrics | notes, values


def benchmark_rules(name: str) -> MomentRules | RankingRules:
    """How the benchmark of this name is scored. Raises UsageError for an unknown name."""
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark is {name!r}, expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def benchmark_of(queries: Sequence[Query]) -> str:
    """The benchmark that the labels look like: youtube-highlights where they have rated windows, tvsum where they have
    domains and no moments, otherwise qvhighlights (whose rules also hold for Charades-STA and TACoS)."""
    if any(query.rated_s for query in queries):
        return "youtube-highlights"
    if any(query.domain for query in queries) and not any(query.windows for query in queries):
        return "tvsum"
    return "qvhighlights"


def _task_metrics(
    predictions: Sequence[Prediction], queries: Sequence[Query], published: MomentRules, *, official: bool, clip_s: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    rules = published if official else STRICT
    # The published evaluator leaves out a task when the first row of the submission lacks it.
    with_moments = not official or bool(predictions[0].windows)
    with_saliency = not official or bool(predictions[0].saliency)
    moments = score_moments(predictions, queries, rules) if with_moments else {}
    ratings = score_ratings(predictions, queries, official=official, clip_s=clip_s) if with_saliency else {}
    metrics: dict[str, Any] = {"brief": {}}
    values: dict[str, np.ndarray] = {}
    for name, length in moments.items():
        metrics[name] = moment_metrics(length, rules)
        shown = None if name == "full" else ["mAP"]
        metrics["brief"] |= _named(name, headline_numbers(metrics[name]), shown)
        if length.query_mask.any():
            values |= _named(name, headline_values(length, rules), shown)
    for name, rating in ratings.items():
        precision, hit = rating[~np.isnan(rating[:, 0])].mean(axis=0)
        metrics[name] = {"HL-mAP": 100 * float(precision), "HL-Hit1": 100 * float(hit)}
        metrics["brief"] |= {f"{name}-{key[3:]}": value for key, value in metrics[name].items()}
        values |= {f"{name}-mAP": 100 * rating[:, 0], f"{name}-Hit1": 100 * rating[:, 1]}
    return _rounded(metrics) if official else metrics, values


def _named(length: str, numbers: Mapping[str, Any], shown: Sequence[str] | None) -> dict[str, Any]:
    """The numbers of a length by the names of `brief`: all of them, or those in `shown`."""
    return {f"MR-{length}-{name}": value for name, value in numbers.items() if shown is None or name in shown}


def _ranking_metrics(
    predictions: Sequence[Prediction], queries: Sequence[Query], rules: RankingRules, *, official: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    precision = score_rankings(predictions, queries, rules)
    domains = sorted({query.domain for query in queries})
    domain_rows = {d: [i for i, query in enumerate(queries) if query.domain == d] for d in domains}
    means = {domain: float(sequential_sum(precision[rows]) / len(rows)) for domain, rows in domain_rows.items()}
    weights = np.ones(len(precision))
    by_domain = {}
    for domain, rows in domain_rows.items():
        weights[rows] = len(precision) / (len(domain_rows) * len(rows))
        by_domain[domain] = np.full(len(precision), np.nan)
        by_domain[domain][rows] = 100 * precision[rows]
    by_domain.pop("", None)  # videos without a domain
    numbers = {rules.name: float(np.mean(list(means.values())))} | {f"{rules.name}-{d}": means[d] for d in by_domain}
    # As published: five decimals of the fraction.
    brief = {key: round(100 * round(mean, 5), 3) if official else 100 * mean for key, mean in numbers.items()}
    numbers_by_domain = {d: {rules.name: brief[f"{rules.name}-{d}"], "videos": len(domain_rows[d])} for d in by_domain}
    values = {f"{rules.name}-{domain}": value for domain, value in by_domain.items()}
    return {"brief": brief, "domains": numbers_by_domain}, {rules.name: 100 * precision * weights, **values}


def _notes(by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], *, ratings_only: bool) -> list[str]:
    """Where the published evaluator would give another number or none."""
    predictions = by_qid.values()
    missing = [repr(query.qid) for query in queries if query.qid not in by_qid]
    task = "saliency" if ratings_only else "window"
    empty = sum(not (p.saliency if ratings_only else p.windows) for p in predictions)
    notes = {
        f"NO ROW for {len(missing)} of {len(queries)} queries ({first_few(missing)}): each counts 0 in "
        "every number; the published evaluator stops.": len(missing),
        f"{empty} queries have no predicted {task} and count 0; the published evaluator stops.": empty,
    }
    if not ratings_only:
        unsorted = sum(any(a[2] < b[2] for a, b in pairwise(p.windows)) for p in predictions)
        long = sum(end - start > 150 for query in queries for start, end in query.windows)
        notes |= {
            f"{unsorted} predictions are not sorted by score; the published evaluator takes the first for R1.": unsorted,
            f"{long} windows are longer than 150 s; the published evaluator leaves them out of 'long'.": long,
        }
    return [note for note, count in notes.items() if count]


def _rounded(value: Any) -> Any:
    # Through text, as published: it decides the last digit of a number that ends in 5.
    return {key: _rounded(inner) for key, inner in value.items()} if isinstance(value, dict) else float(f"{value:.2f}")

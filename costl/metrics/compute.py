"""Computes the metrics of each benchmark from predictions and annotations, in a strict mode and exactly as published.

The formulas and their sources are in `moments` and `highlights`. All numbers are percentages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.checks import check_official, check_strict, index_by_qid
from costl.metrics.highlights import TVSUM, YOUTUBE, RankingRules, score_rankings, score_ratings, sequential_sum
from costl.metrics.moments import (
    FORK,
    PUBLISHED,
    STRICT,
    MomentRules,
    MomentScores,
    moment_brief,
    moment_headlines,
    moment_metrics,
    score_moments,
)
from costl.pipeline.errors import UsageError, first_few


@dataclass(frozen=True)
class BenchmarkRules:
    """How a benchmark is scored: by `moments` as its published evaluator counts them (and highlights where clips are
    rated), or only by the `ranking` of clips."""

    moments: MomentRules | None = None
    ranking: RankingRules | None = None


BENCHMARKS: Mapping[str, BenchmarkRules] = {
    "qvhighlights": BenchmarkRules(moments=PUBLISHED),
    "charades": BenchmarkRules(moments=FORK),
    "tacos": BenchmarkRules(moments=FORK),
    "tvsum": BenchmarkRules(ranking=TVSUM),
    "youtube-highlights": BenchmarkRules(ranking=YOUTUBE),
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

    Raises UsageError that names the query: in both modes for a qid that is unknown or occurs twice; in strict mode for a
    window that is reversed or outside its video, for the id of another video, and for a saliency list of the wrong
    length; in official mode for whatever the published code cannot score (a query without prediction or labels).
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
    scored = _score(predictions, queries, official=official, clip_s=clip_s, benchmark=benchmark)
    if scored.ranking is None:
        metrics, headlines = _task_metrics(scored)
    else:
        metrics, headlines = _ranking_metrics(scored, official=official)
    if not official:
        return {**metrics, "notes": _notes(scored)}, headlines
    if scored.ranking is None:
        metrics = _rounded(metrics) | _official_notes(scored)
    return metrics, headlines


def benchmark_rules(name: str) -> BenchmarkRules:
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


@dataclass(frozen=True)
class _Scored:
    """The predictions in the order of the queries, and the scores of each."""

    predictions: list[Prediction]
    queries: Sequence[Query]
    missing_qids: Sequence[int | str]  # queries without a row
    rules: MomentRules = STRICT
    moments: Mapping[str, MomentScores] = field(default_factory=dict)
    ratings: Mapping[str, np.ndarray] = field(default_factory=dict)  # [b 2], fractions
    ranking: np.ndarray | None = None  # [b], fractions
    ranking_name: str = ""


def _score(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, official: bool, clip_s: float, benchmark: str
) -> _Scored:
    rules = benchmark_rules(benchmark)
    ratings_only = rules.ranking is not None
    by_qid = index_by_qid(predictions, queries, benchmark=benchmark, ratings_only=ratings_only)
    if official:
        check_official(by_qid, queries, ratings_only=ratings_only)
    else:
        check_strict(by_qid, queries, ratings_only=ratings_only, clip_s=clip_s)
    ordered = [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]
    missing_qids = [query.qid for query in queries if query.qid not in by_qid]
    if rules.ranking:
        ranking = score_rankings(ordered, queries, rules.ranking)
        return _Scored(ordered, queries, missing_qids, ranking=ranking, ranking_name=rules.ranking.name)
    moment_rules = rules.moments if official and rules.moments else STRICT
    # The published evaluator leaves out a task when the first row of the submission lacks it.
    with_moments = not official or bool(ordered[0].windows)
    with_saliency = not official or bool(ordered[0].saliency)
    moments = score_moments(ordered, queries, moment_rules) if with_moments else {}
    ratings = score_ratings(ordered, queries, official=official, clip_s=clip_s) if with_saliency else {}
    return _Scored(ordered, queries, missing_qids, moment_rules, moments, ratings)


def _task_metrics(scored: _Scored) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    moments = moment_metrics(scored.moments, scored.rules)
    headlines = moment_headlines(scored.moments, scored.rules)
    highlights = {}
    for name, values in scored.ratings.items():
        precision, hit = values[~np.isnan(values[:, 0])].mean(axis=0)
        highlights[name] = {"HL-mAP": 100 * float(precision), "HL-Hit1": 100 * float(hit)}
        headlines |= {f"{name}-mAP": 100 * values[:, 0], f"{name}-Hit1": 100 * values[:, 1]}
    pairs = {f"{name}-{key[3:]}": value for name, pair in highlights.items() for key, value in pair.items()}
    return {"brief": moment_brief(moments) | pairs, **highlights, **moments}, headlines


def _ranking_metrics(scored: _Scored, *, official: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    assert scored.ranking is not None
    name = scored.ranking_name
    values = scored.ranking
    domain_rows = _rows_by_domain(scored.queries)
    means = {domain: float(sequential_sum(values[rows]) / len(rows)) for domain, rows in domain_rows.items()}
    weights = np.ones(len(values))
    headlines = {}
    for domain, rows in domain_rows.items():
        weights[rows] = len(values) / (len(domain_rows) * len(rows))
        headlines[f"{name}-{domain}"] = np.full(len(values), np.nan)
        headlines[f"{name}-{domain}"][rows] = 100 * values[rows]
    headlines.pop(f"{name}-", None)  # videos without a domain
    numbers = {name: float(np.mean(list(means.values())))} | {f"{name}-{d}": mean for d, mean in means.items() if d}
    # As published: five decimals of the fraction.
    brief = {key: round(100 * round(mean, 5), 3) if official else 100 * mean for key, mean in numbers.items()}
    domains = {d: {name: brief[f"{name}-{d}"], "videos": len(rows)} for d, rows in domain_rows.items() if d}
    return {"brief": brief, "domains": domains}, {name: 100 * values * weights, **headlines}


def _rows_by_domain(queries: Sequence[Query]) -> dict[str, list[int]]:
    """The indices of the queries of each domain, domains in alphabetical order."""
    rows: dict[str, list[int]] = {domain: [] for domain in sorted({query.domain for query in queries})}
    for row, query in enumerate(queries):
        rows[query.domain].append(row)
    return rows


def _notes(scored: _Scored) -> list[str]:
    """Where the published evaluator would give another number or none."""
    predictions = scored.predictions
    queries = scored.queries
    missing = set(scored.missing_qids)
    task = "window" if scored.ranking is None else "saliency"
    empty = sum(not (p.windows if task == "window" else p.saliency) and p.qid not in missing for p in predictions)
    unsorted = sum(any(a[2] < b[2] for a, b in zip(p.windows, p.windows[1:], strict=False)) for p in predictions)
    long = sum(end - start > 150 for query in queries for start, end in query.windows)
    notes = {
        f"NO ROW for {len(missing)} of {len(queries)} queries ({first_few(map(repr, scored.missing_qids))}): each counts 0 in "
        "every number; the published evaluator stops.": len(missing),
        f"{empty} queries have no predicted {task} and count 0; the published evaluator stops.": empty,
        f"{unsorted} predictions are not sorted by score; the published evaluator takes the first for R1.": unsorted,
        f"{long} windows are longer than 150 s; the published evaluator leaves them out of 'long'.": long,
    }
    moments_only = 2  # the last ones
    relevant = list(notes.items())[: None if task == "window" else -moments_only]
    return [note for note, count in relevant if count]


def _official_notes(scored: _Scored) -> dict[str, list[str]]:
    missing = [name for name in scored.rules.lengths if name not in scored.moments]
    if not scored.moments or not missing:
        return {}
    return {"notes": [f"No true window is {' or '.join(missing)}: left out here, where the published evaluator stops."]}


def _rounded(value: Any) -> Any:
    # Through text, as published: it decides the last digit of a number that ends in 5.
    return {key: _rounded(inner) for key, inner in value.items()} if isinstance(value, dict) else float(f"{value:.2f}")

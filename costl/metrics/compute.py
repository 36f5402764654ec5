"""Predictions against truth: the numbers of each benchmark, in a strict mode of our own and exactly as published.

The door to `moments` and `highlights`, which say where their formulas come from. All numbers are percentages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.checks import by_checked_qid, check_official, check_strict, listed
from costl.metrics.highlights import TVSUM, YOUTUBE, RatingRules, added_up, score_rankings, score_ratings
from costl.metrics.moments import (
    FORK,
    IOU_THRESHOLDS,
    PUBLISHED,
    STRICT,
    MomentRules,
    MomentScores,
    interval_iou,
    moment_brief,
    moment_headlines,
    moment_metrics,
    score_moments,
)
from costl.pipeline.errors import UsageError

__all__ = [
    "BENCHMARKS",
    "IOU_THRESHOLDS",
    "benchmark_of",
    "benchmark_rules",
    "compute_metrics",
    "contributions",
    "interval_iou",
    "measure",
]


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is scored: the published rules for its moments, or the ranking of clips that is all it has."""

    published: MomentRules | None = None
    ranking: RatingRules | None = None


BENCHMARKS: Mapping[str, Benchmark] = {
    "qvhighlights": Benchmark(published=PUBLISHED),
    "charades": Benchmark(published=FORK),
    "tacos": Benchmark(published=FORK),
    "tvsum": Benchmark(ranking=TVSUM),
    "youtube-highlights": Benchmark(ranking=YOUTUBE),
}


def compute_metrics(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    *,
    official: bool = False,
    clip_s: float = 2.0,
    benchmark: str = "qvhighlights",
) -> dict[str, Any]:
    """`brief` (the headline numbers) and all detail, laid out as the published evaluator writes its JSON.

    qvhighlights, charades, tacos: R1, mAP and mIoU of moments by length of the window, HIT@1 and mAP of highlights.
    tvsum and youtube-highlights: mAP of the ranking of clips, the mean over domains; `domains` has each of them.

    Strict, the default: every query counts exactly once, and one without a prediction counts 0; moments are taken
    by score; nothing is rounded; R1@0.3, R5 and mIoU are added; `notes` says where the published evaluator would
    differ. A clip lasts `clip_s` seconds.

    Official: the published evaluator to the last digit. R1 takes the first moment listed, whatever its score; mAP the
    first ten; saliency lists are cut or filled with zeros to int(duration / 2) clips; two decimals (rankings: three,
    five of the fraction). charades and tacos by the fork that CG-DETR and FlashVTG share, whose "long" ends at 150 s
    (windows of TACoS reach 843 s; strict has no end) and which gives zeros for a length that no window has.

    Otherwise both leave out what has no truth (no saliency in Charades-STA, no window of some length), where the published
    code stops. Raises UsageError, naming the query: a qid that is unknown or occurs twice, and in strict mode a window
    reversed or outside its video, another video's id, a saliency list of the wrong length; in official mode whatever
    the published code cannot score (a query without prediction or without truth).
    """
    return measure(predictions, queries, official=official, clip_s=clip_s, benchmark=benchmark)[0]


def contributions(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    *,
    official: bool = False,
    clip_s: float = 2.0,
    benchmark: str = "qvhighlights",
) -> dict[str, np.ndarray]:
    """What every query [q] adds to each headline number, percent, in the order of `queries`: NaN where it does not
    count; the mean of the others is the number. Arguments and errors are those of `compute_metrics`.

    A mean over domains of different size weighs their videos accordingly.
    """
    return measure(predictions, queries, official=official, clip_s=clip_s, benchmark=benchmark)[1]


def measure(
    predictions: Sequence[Prediction],
    queries: Sequence[Query],
    *,
    official: bool = False,
    clip_s: float = 2.0,
    benchmark: str = "qvhighlights",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `compute_metrics` and `contributions` give, scored once."""
    scored = _score(predictions, queries, official=official, clip_s=clip_s, benchmark=benchmark)
    metrics, headlines = (
        _task_metrics(scored) if scored.ranking is None else _ranking_metrics(scored, official=official)
    )
    if not official:
        return {**metrics, "notes": _notes(scored)}, headlines
    return (_rounded(metrics) | _official_notes(scored)) if scored.ranking is None else metrics, headlines


def benchmark_rules(name: str) -> Benchmark:
    """How the benchmark of this name is scored. Raises UsageError for a name that is none."""
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark is {name!r}, expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def benchmark_of(queries: Sequence[Query]) -> str:
    """The benchmark whose labels these are: youtube-highlights where windows of its own are rated, tvsum where there
    are domains and no true windows, otherwise qvhighlights (whose rules also hold for Charades-STA and TACoS)."""
    if any(query.rated_s for query in queries):
        return "youtube-highlights"
    if any(query.domain for query in queries) and not any(query.windows for query in queries):
        return "tvsum"
    return "qvhighlights"


@dataclass(frozen=True)
class _Scored:
    answers: list[Prediction]
    queries: Sequence[Query]
    unanswered: Sequence[int | str]  # without a row
    rules: MomentRules = STRICT
    moments: Mapping[str, MomentScores] = field(default_factory=dict)
    ratings: Mapping[str, np.ndarray] = field(default_factory=dict)  # [q 2], fractions
    ranking: np.ndarray | None = None  # [q], fractions
    name: str = ""  # of the number that the ranking gives


def _score(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, official: bool, clip_s: float, benchmark: str
) -> _Scored:
    how = benchmark_rules(benchmark)
    by_qid = by_checked_qid(predictions, queries, benchmark=benchmark, ranking=how.ranking is not None)
    if official:
        check_official(by_qid, queries, ranking=how.ranking is not None)
    else:
        check_strict(by_qid, queries, ranking=how.ranking is not None, clip_s=clip_s)
    answers = [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]
    unanswered = [query.qid for query in queries if query.qid not in by_qid]
    if how.ranking:
        values = score_rankings(answers, queries, how.ranking)
        return _Scored(answers, queries, unanswered, ranking=values, name=how.ranking.name)
    rules = how.published if official and how.published else STRICT
    # What the first row of a submission lacks, the published evaluator takes for a task that was not attempted.
    windows, saliency = (not official or bool(part) for part in (answers[0].windows, answers[0].saliency))
    moments = score_moments(answers, queries, rules) if windows else {}
    ratings = score_ratings(answers, queries, official=official, clip_s=clip_s) if saliency else {}
    return _Scored(answers, queries, unanswered, rules, moments, ratings)


def _task_metrics(scored: _Scored) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    moments = moment_metrics(scored.moments, scored.rules)
    highlights, headlines = {}, moment_headlines(scored.moments, scored.rules)
    for name, values in scored.ratings.items():
        precision, hit = values[~np.isnan(values[:, 0])].mean(axis=0)
        highlights[name] = {"HL-mAP": 100 * float(precision), "HL-Hit1": 100 * float(hit)}
        headlines |= {f"{name}-mAP": 100 * values[:, 0], f"{name}-Hit1": 100 * values[:, 1]}
    pairs = {f"{name}-{key[3:]}": value for name, pair in highlights.items() for key, value in pair.items()}
    return {"brief": moment_brief(moments) | pairs, **highlights, **moments}, headlines


def _ranking_metrics(scored: _Scored, *, official: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    assert scored.ranking is not None
    name, groups, values = scored.name, _by_domain(scored.queries), scored.ranking
    means = {domain: float(added_up(values[rows]) / len(rows)) for domain, rows in groups.items()}
    weights, headlines = np.ones(len(values)), {}
    for domain, rows in groups.items():
        weights[rows] = len(values) / (len(groups) * len(rows))
        headlines[f"{name}-{domain}"] = np.full(len(values), np.nan)
        headlines[f"{name}-{domain}"][rows] = 100 * values[rows]
    headlines.pop(f"{name}-", None)  # videos without a domain
    numbers = {name: float(np.mean(list(means.values())))} | {f"{name}-{d}": mean for d, mean in means.items() if d}
    # As published: five decimals of the fraction.
    brief = {key: round(100 * round(mean, 5), 3) if official else 100 * mean for key, mean in numbers.items()}
    domains = {d: {name: brief[f"{name}-{d}"], "videos": len(rows)} for d, rows in groups.items() if d}
    return {"brief": brief, "domains": domains}, {name: 100 * values * weights, **headlines}


def _by_domain(queries: Sequence[Query]) -> dict[str, list[int]]:
    """The rows of each domain, domains in the order of the alphabet."""
    groups: dict[str, list[int]] = {domain: [] for domain in sorted({query.domain for query in queries})}
    for row, query in enumerate(queries):
        groups[query.domain].append(row)
    return groups


def _notes(scored: _Scored) -> list[str]:
    answers, queries, lost = scored.answers, scored.queries, set(scored.unanswered)
    part = "window" if scored.ranking is None else "saliency"
    empty = sum(not (a.windows if part == "window" else a.saliency) and a.qid not in lost for a in answers)
    unsorted = sum(any(a[2] < b[2] for a, b in zip(p.windows, p.windows[1:], strict=False)) for p in answers)
    long = sum(end - start > 150 for query in queries for start, end in query.windows)
    notes = {
        f"NO ROW for {len(lost)} of {len(queries)} queries ({listed(scored.unanswered)}): each counts 0 in every "
        "number; the published evaluator stops.": len(lost),
        f"{empty} queries have no predicted {part} and count 0; the published evaluator stops.": empty,
        f"{unsorted} predictions are not sorted by score; the published evaluator takes the first for R1.": unsorted,
        f"{long} windows are longer than 150 s; the published evaluator leaves them out of 'long'.": long,
    }
    moments_only = 2  # the last ones
    kept = list(notes.items())[: None if part == "window" else -moments_only]
    return [text for text, count in kept if count]


def _official_notes(scored: _Scored) -> dict[str, list[str]]:
    missing = [name for name in scored.rules.lengths if name not in scored.moments]
    if not scored.moments or not missing:
        return {}
    return {"notes": [f"No true window is {' or '.join(missing)}: left out here, where the published evaluator stops."]}


def _rounded(value: Any) -> Any:
    # Through text, as published: it decides the last digit of a number that ends in 5.
    return {key: _rounded(inner) for key, inner in value.items()} if isinstance(value, dict) else float(f"{value:.2f}")

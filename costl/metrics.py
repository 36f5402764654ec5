"""Predictions against truth: the numbers of each benchmark, in a strict mode of our own and exactly as published.

The door to `moments` and `highlights`, which say where their formulas come from. All numbers are percentages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costl.annotations import Prediction, Query
from costl.highlights import TVSUM, YOUTUBE, RatingRules, clips_of, score_rankings, score_ratings
from costl.moments import (
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
from pipeline.errors import UsageError

__all__ = [
    "BENCHMARKS",
    "IOU_THRESHOLDS",
    "benchmark_of",
    "compute_metrics",
    "contributions",
    "interval_iou",
    "measure",
]

# A window may end this far outside its video, so that times written with two decimals are not refused.
SLACK_S = 0.01
REMEDY = "Correct it, or score as the published evaluator does with --official."
UNSCORED = "the published evaluator cannot score it; leave out --official."


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

    Else both leave out what has no truth (no saliency in Charades-STA, no window of some length), where the published
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
    metrics, headlines = (_task_metrics if scored.ranking is None else _ranking_metrics)(scored)
    if official:
        return _rounded(metrics, decimals=2 if scored.ranking is None else 3), headlines
    return {**metrics, "notes": _notes(scored)}, headlines


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
    rules: MomentRules
    moments: Mapping[str, MomentScores]
    ratings: Mapping[str, np.ndarray]  # [q 2], fractions
    ranking: np.ndarray | None = None  # [q], fractions
    name: str = ""  # of the number that the ranking gives


def _score(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, official: bool, clip_s: float, benchmark: str
) -> _Scored:
    if benchmark not in BENCHMARKS:
        raise UsageError(f"benchmark is {benchmark!r}, expected one of {', '.join(BENCHMARKS)}.")
    how = BENCHMARKS[benchmark]
    by_qid = _by_qid(predictions, queries, how, benchmark)
    check = _check_official if official else _check_strict
    check(by_qid, queries, how, clip_s)
    answers = [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]
    if how.ranking:
        return _Scored(
            answers, queries, STRICT, {}, {}, score_rankings(answers, queries, how.ranking), how.ranking.name
        )
    rules = how.published if official and how.published else STRICT
    # What the first row of a submission lacks, the published evaluator takes for a task that was not attempted.
    windows, saliency = (not official or bool(part) for part in (answers[0].windows, answers[0].saliency))
    return _Scored(
        answers,
        queries,
        rules,
        score_moments(answers, queries, rules) if windows else {},
        score_ratings(answers, queries, official=official, clip_s=clip_s) if saliency else {},
    )


def _task_metrics(scored: _Scored) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    moments = moment_metrics(scored.moments, scored.rules)
    highlights, headlines = {}, moment_headlines(scored.moments, scored.rules)
    for name, values in scored.ratings.items():
        precision, hit = values[~np.isnan(values[:, 0])].mean(axis=0)
        highlights[name] = {"HL-mAP": 100 * float(precision), "HL-Hit1": 100 * float(hit)}
        headlines |= {f"{name}-mAP": 100 * values[:, 0], f"{name}-Hit1": 100 * values[:, 1]}
    pairs = {f"{name}-{key[3:]}": value for name, pair in highlights.items() for key, value in pair.items()}
    return {"brief": moment_brief(moments) | pairs, **highlights, **moments}, headlines


def _ranking_metrics(scored: _Scored) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    assert scored.ranking is not None
    name, groups, values = scored.name, _by_domain(scored.queries), 100 * scored.ranking
    weights, headlines, domains = np.ones(len(values)), {}, {}
    for domain, rows in groups.items():
        weights[rows] = len(values) / (len(groups) * len(rows))
        if domain:
            domains[domain] = {name: float(values[rows].mean()), "videos": len(rows)}
            headlines[f"{name}-{domain}"] = np.full(len(values), np.nan)
            headlines[f"{name}-{domain}"][rows] = values[rows]
    mean = float(np.mean([values[rows].mean() for rows in groups.values()]))
    brief = {name: mean} | {f"{name}-{domain}": row[name] for domain, row in domains.items()}
    return {"brief": brief, "domains": domains}, {name: values * weights, **headlines}


def _by_domain(queries: Sequence[Query]) -> dict[str, list[int]]:
    """The rows of each domain, domains in the order of the alphabet."""
    groups: dict[str, list[int]] = {domain: [] for domain in sorted({query.domain for query in queries})}
    for row, query in enumerate(queries):
        groups[query.domain].append(row)
    return groups


def _by_qid(
    predictions: Sequence[Prediction], queries: Sequence[Query], how: Benchmark, benchmark: str
) -> dict[int | str, Prediction]:
    if not any(_has_truth(query, how) for query in queries):
        needed = "rated clips" if how.ranking else "windows or saliency"
        raise UsageError(
            f"{len(queries)} queries without {needed}: there is no truth to compare with (benchmark {benchmark})."
        )
    known = {query.qid for query in queries}
    for name, rows in (("predictions", predictions), ("truth", queries)):
        for qid, times in Counter(row.qid for row in rows).items():
            if times > 1:
                raise UsageError(f"{name}: query {qid!r} occurs {times} times, expected once.")
            if qid not in known:
                raise UsageError(f"predictions: query {qid!r} is not in the truth ({len(known)} queries).")
    return {prediction.qid: prediction for prediction in predictions}


def _has_truth(query: Query, how: Benchmark) -> bool:
    return bool(query.clip_ids or (query.windows and not how.ranking))


def _check_official(
    by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], how: Benchmark, clip_s: float
) -> None:
    if not any(row.windows or row.saliency for row in by_qid.values()):
        raise UsageError("predictions: no windows and no saliency at all, expected a row for every query.")
    for part, truth in (("windows", "windows"), ("saliency", "clip_ids")):
        # A kind of prediction that nobody made, or a truth that nobody has, is left out as a whole.
        made, labelled = any(getattr(p, part) for p in by_qid.values()), any(getattr(q, truth) for q in queries)
        if not (made and labelled) and not (how.ranking and part == "saliency"):
            continue
        for query in queries:
            if query.qid not in by_qid or not getattr(by_qid[query.qid], part):
                raise UsageError(f"query {query.qid!r} has no predicted {part}: {UNSCORED}")
            if not getattr(query, truth):
                raise UsageError(f"query {query.qid!r} has no true {part}: {UNSCORED}")


def _check_strict(
    by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], how: Benchmark, clip_s: float
) -> None:
    for query in queries:
        if not _has_truth(query, how):
            needed = "no rated clips" if how.ranking else "neither windows nor saliency"
            raise UsageError(f"truth: query {query.qid!r} has {needed}, others have.")
        answer = by_qid.get(query.qid)
        if answer is None:
            continue
        where = f"predictions: query {query.qid!r}"
        if answer.vid and answer.vid != query.vid:
            raise UsageError(f"{where} names the video {answer.vid!r}, expected {query.vid!r}.")
        for start, end, _ in answer.windows:
            if not -SLACK_S <= start <= end <= query.duration_s + SLACK_S:
                raise UsageError(
                    f"{where}: window [{start}, {end}] is not inside its video of {query.duration_s} s. {REMEDY}"
                )
        clips = clips_of(query, clip_s)
        if answer.saliency and len(answer.saliency) != clips:
            raise UsageError(f"{where} has {len(answer.saliency)} saliency scores, its video {clips} clips. {REMEDY}")
        if max(query.clip_ids, default=0) >= clips:
            raise UsageError(
                f"truth: query {query.qid!r}: clip {max(query.clip_ids)} is rated, but its video has {clips} clips."
            )


def _notes(scored: _Scored) -> list[str]:
    answers, queries = scored.answers, scored.queries
    if scored.ranking is not None:
        silent = sum(not answer.saliency for answer in answers)
        return [f"{silent} videos have no predicted saliency and count 0; published code stops."] if silent else []
    empty = sum(not answer.windows for answer in answers)
    unsorted = sum(any(a[2] < b[2] for a, b in zip(p.windows, p.windows[1:], strict=False)) for p in answers)
    long = sum(end - start > 150 for query in queries for start, end in query.windows)
    notes = {
        f"{empty} queries have no predicted window and count 0; the published evaluator stops.": empty,
        f"{unsorted} predictions are not sorted by score; the published evaluator takes the first for R1.": unsorted,
        f"{long} windows are longer than 150 s; the published evaluator leaves them out of 'long'.": long,
    }
    return [text for text, count in notes.items() if count]


def _rounded(value: Any, *, decimals: int) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner, decimals=decimals) for key, inner in value.items()}
    # Through text, as published: it decides the last digit of a number that ends in 5.
    return float(f"{value:.{decimals}f}") if isinstance(value, float) else value

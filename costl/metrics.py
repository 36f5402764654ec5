"""Predictions against truth: the numbers of the field, in a strict mode of our own and exactly as published.

Sources: `standalone_eval/eval.py` of jayleicn/moment_detr (QVHighlights, the published evaluator); average precision of
moments after the ActivityNet and VOC 2011 detection tasks (all points, precision made monotone); R1@0.3 and mIoU as
Charades-STA and TACoS report them. All numbers are percentages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costl.annotations import Prediction, Query
from pipeline.errors import UsageError
from pipeline.grid import Grid

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
# Which windows of the truth count: those longer than the one and no longer than the other, seconds. The published
# evaluator writes "full" as [0, 150] and means all of them.
LENGTHS = {"full": (0.0, np.inf), "long": (30.0, np.inf), "middle": (10.0, 30.0), "short": (0.0, 10.0)}
OFFICIAL_LENGTHS = LENGTHS | {"long": (30.0, 150.0)}
MIN_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}
WINDOWS_SCORED = 10
OFFICIAL_CLIP_S = 2.0
# A window may end this far outside its video, so that times written with two decimals are not refused.
SLACK_S = 0.01
UNSCORED = "the published evaluator cannot score it; leave out --official."


def compute_metrics(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, official: bool = False, clip_s: float = 2.0
) -> dict[str, Any]:
    """`brief` (the headline numbers) and all detail, laid out as the published evaluator writes its JSON.

    Strict, the default: every query counts exactly once, and one without a prediction counts 0; moments are taken
    by score; nothing is rounded; R1@0.3 and mIoU are added; `notes` says where the published evaluator would differ.
    A clip lasts `clip_s` seconds.

    Official: the published evaluator to the last digit. R1 takes the first moment listed, whatever its score; mAP the
    first ten; saliency lists are cut or filled with zeros to int(duration / 2) clips; two decimals.

    Both leave out what has no truth (no saliency in Charades-STA, no window of some length), where the published code
    stops. Raises UsageError, naming the query: a qid that is unknown or occurs twice, and in strict mode a window
    reversed or outside its video, another video's id, a saliency list of the wrong length; in official mode whatever
    the published code cannot score (a query without prediction or without truth).
    """
    by_qid = _by_qid(predictions, queries)
    if official:
        _check_official(by_qid, queries)
    else:
        _check_strict(by_qid, queries, clip_s)
    answers = [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]
    moments = _moment_metrics(answers, queries, official=official)
    highlights = _highlight_metrics(answers, queries, official=official, clip_s=clip_s)
    metrics = {"brief": _brief(moments, highlights), **highlights, **moments}
    return _rounded(metrics) if official else {**metrics, "notes": _notes(answers, queries)}


def interval_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of intervals [... 2] over the length of their union [...]; NaN where that length is zero."""
    shared = np.maximum(0.0, np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]))
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / ((a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - shared)


@dataclass(frozen=True)
class _Matches:
    """Every moment against every window of the truth: q queries, m moments, g windows, padded to the longest."""

    iou: np.ndarray  # [q m g]; moments by falling score; NaN where both have no length
    real: np.ndarray  # [q g], True where there is a window
    length_s: np.ndarray  # [q g]
    first: np.ndarray  # [q 2], the moment that R1 takes; [0, 0] where there is none
    truth: np.ndarray  # [q g 2]


def _moment_metrics(answers: Sequence[Prediction], queries: Sequence[Query], *, official: bool) -> dict[str, Any]:
    pairs = [(answer, query) for answer, query in zip(answers, queries, strict=True) if query.windows]
    if not pairs or (official and not answers[0].windows):
        return {}
    matches = _match(pairs, official=official)
    result = {}
    for name, (above_s, up_to_s) in (OFFICIAL_LENGTHS if official else LENGTHS).items():
        counted = matches.real & (above_s < matches.length_s) & (matches.length_s <= up_to_s)
        if counted.any():
            result[name] = _length_metrics(matches, counted, official=official)
    return result


def _match(pairs: Sequence[tuple[Prediction, Query]], *, official: bool) -> _Matches:
    ranked = [_ranked(answer, official=official) for answer, _ in pairs]
    moments, _ = _padded([[moment[:2] for moment in row] for row in ranked])
    truth, real = _padded([query.windows for _, query in pairs])
    # Official: the first in the list, whatever the scores say.
    firsts = [answer.windows if official else row for (answer, _), row in zip(pairs, ranked, strict=True)]
    return _Matches(
        iou=interval_iou(moments[:, :, None], truth[:, None]),
        real=real,
        length_s=truth[..., 1] - truth[..., 0],
        first=np.array([row[0][:2] if row else (0.0, 0.0) for row in firsts]),
        truth=truth,
    )


def _ranked(answer: Prediction, *, official: bool) -> list[tuple[float, float, float]]:
    windows = answer.windows[:WINDOWS_SCORED] if official else answer.windows
    return sorted(windows, key=lambda moment: -moment[2])[:WINDOWS_SCORED]  # equal scores keep their order


def _padded(rows: Sequence[Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Intervals [q n 2] and which of them are real [q n]; the others are [-1, -1], which overlaps nothing."""
    longest = max(1, max(len(row) for row in rows))
    intervals = np.full((len(rows), longest, 2), -1.0)
    real = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    intervals[real] = np.concatenate([np.reshape(row, (-1, 2)) for row in rows])
    return intervals, real


def _length_metrics(matches: _Matches, counted: np.ndarray, *, official: bool) -> dict[str, Any]:
    some = counted.any(axis=1)  # a query without a window of this length is left out
    iou, real = matches.iou[some], counted[some]
    precision = _average_precisions(iou, real).mean(axis=0)
    overlap = _overlap_of_first(matches.first[some], matches.truth[some], real)
    recall_at = IOU_THRESHOLDS if official else (0.3, *IOU_THRESHOLDS)
    mean_iou = {} if official else {"MR-mIoU": 100 * float(overlap.mean())}
    return mean_iou | {
        "MR-mAP": {str(t): 100 * float(p) for t, p in zip(IOU_THRESHOLDS, precision, strict=True)}
        | {"average": 100 * float(precision.mean())},
        "MR-R1": {str(t): 100 * float(np.mean(overlap >= t)) for t in recall_at},
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


def _overlap_of_first(first: np.ndarray, truth: np.ndarray, real: np.ndarray) -> np.ndarray:
    """IoU [q] of one moment [q 2] with the window [q g 2] it overlaps most."""
    iou = np.where(real, interval_iou(first[:, None], truth), -1.0)
    window = np.take_along_axis(truth, iou.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    # From the outer ends, as published: the same but for the last bit, which decides whether an IoU of just 0.5 counts.
    shared = np.minimum(first[:, 1], window[:, 1]) - np.maximum(first[:, 0], window[:, 0])
    span = np.maximum(first[:, 1], window[:, 1]) - np.minimum(first[:, 0], window[:, 0])
    return np.maximum(0.0, shared) / span


def _highlight_metrics(
    answers: Sequence[Prediction], queries: Sequence[Query], *, official: bool, clip_s: float
) -> dict[str, Any]:
    pairs = [(answer, query) for answer, query in zip(answers, queries, strict=True) if query.clip_ids]
    if not pairs or (official and not answers[0].saliency):
        return {}
    clips = _official_clips if official else lambda query: Grid(1 / clip_s, query.duration_s).clips
    rows = [_highlight_row(answer.saliency, _ratings(query, clips(query))) for answer, query in pairs]
    precision, hit = np.mean(rows, axis=0)
    return {
        f"HL-min-{name}": {"HL-mAP": 100 * float(precision[i]), "HL-Hit1": 100 * float(hit[i])}
        for i, name in enumerate(MIN_RATINGS)
    }


def _official_clips(query: Query) -> int:
    return int(query.duration_s / OFFICIAL_CLIP_S)


def _ratings(query: Query, clips: int) -> np.ndarray:
    """Ratings [t r] of all clips; a clip that nobody rated counts 0."""
    if max(query.clip_ids) >= clips:
        raise UsageError(f"query {query.qid!r}: clip {max(query.clip_ids)} is rated, but its video has {clips} clips.")
    ratings = np.zeros((clips, len(query.saliency[0])))
    ratings[list(query.clip_ids)] = query.saliency
    return ratings


def _highlight_row(saliency: Sequence[float], ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(labels[order], axis=0)[last]
    best = np.maximum.accumulate((found / (last + 1)[:, None])[::-1], axis=0)[::-1]
    finds = np.diff(found, axis=0, prepend=0) > 0
    return (best * finds).sum(axis=0) / np.maximum(1, finds.sum(axis=0))


def _by_qid(predictions: Sequence[Prediction], queries: Sequence[Query]) -> dict[int | str, Prediction]:
    if not any(query.windows or query.clip_ids for query in queries):
        raise UsageError(f"{len(queries)} queries without windows or saliency: there is no truth to compare with.")
    known = {query.qid for query in queries}
    for name, rows in (("predictions", predictions), ("truth", queries)):
        for qid, times in Counter(row.qid for row in rows).items():
            if times > 1:
                raise UsageError(f"{name}: query {qid!r} occurs {times} times, expected once.")
            if qid not in known:
                raise UsageError(f"predictions: query {qid!r} is not in the truth ({len(known)} queries).")
    return {prediction.qid: prediction for prediction in predictions}


def _check_official(by_qid: Mapping[int | str, Prediction], queries: Sequence[Query]) -> None:
    if not any(row.windows or row.saliency for row in by_qid.values()):
        raise UsageError("predictions: no windows and no saliency at all, expected a row for every query.")
    for part, truth in (("windows", "windows"), ("saliency", "clip_ids")):
        # A kind of prediction that nobody made, or a truth that nobody has, is left out as a whole.
        if not any(getattr(p, part) for p in by_qid.values()) or not any(getattr(q, truth) for q in queries):
            continue
        for query in queries:
            if query.qid not in by_qid or not getattr(by_qid[query.qid], part):
                raise UsageError(f"query {query.qid!r} has no predicted {part}: {UNSCORED}")
            if not getattr(query, truth):
                raise UsageError(f"query {query.qid!r} has no true {part}: {UNSCORED}")


def _check_strict(by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], clip_s: float) -> None:
    for query in queries:
        if not (query.windows or query.clip_ids):
            raise UsageError(f"truth: query {query.qid!r} has neither windows nor saliency, others have.")
        answer = by_qid.get(query.qid)
        if answer is None:
            continue
        where = f"predictions: query {query.qid!r}"
        if answer.vid and answer.vid != query.vid:
            raise UsageError(f"{where} names the video {answer.vid!r}, expected {query.vid!r}.")
        for start, end, _ in answer.windows:
            if not -SLACK_S <= start <= end <= query.duration_s + SLACK_S:
                raise UsageError(f"{where}: window [{start}, {end}] is not inside its video of {query.duration_s} s.")
        clips = Grid(1 / clip_s, query.duration_s).clips
        if answer.saliency and len(answer.saliency) != clips:
            raise UsageError(f"{where} has {len(answer.saliency)} saliency scores, its video {clips} clips.")


def _notes(answers: Sequence[Prediction], queries: Sequence[Query]) -> list[str]:
    empty = sum(not answer.windows for answer in answers)
    unsorted = sum(any(a[2] < b[2] for a, b in zip(p.windows, p.windows[1:], strict=False)) for p in answers)
    long = sum(end - start > 150 for query in queries for start, end in query.windows)
    notes = {
        f"{empty} queries have no predicted window and count 0; the published evaluator stops.": empty,
        f"{unsorted} predictions are not sorted by score; the published evaluator takes the first for R1.": unsorted,
        f"{long} windows are longer than 150 s; the published evaluator leaves them out of 'long'.": long,
    }
    return [text for text, count in notes.items() if count]


def _brief(moments: Mapping[str, Any], highlights: Mapping[str, Any]) -> dict[str, float]:
    brief = {}
    if moments:
        full = moments["full"]
        brief = {f"MR-full-R1@{t}": full["MR-R1"][t] for t in ("0.3", "0.5", "0.7") if t in full["MR-R1"]}
        brief |= {"MR-full-mAP": full["MR-mAP"]["average"]}
        brief |= {f"MR-full-mAP@{t}": full["MR-mAP"][t] for t in ("0.5", "0.75")}
        brief |= {"MR-full-mIoU": full["MR-mIoU"]} if "MR-mIoU" in full else {}
        brief |= {f"MR-{name}-mAP": moments[name]["MR-mAP"]["average"] for name in moments if name != "full"}
    return brief | {f"{name}-{key[3:]}": value for name, pair in highlights.items() for key, value in pair.items()}


def _rounded(value: Any) -> Any:
    # Through text, as published: it decides the last digit of a number that ends in 5.
    return {key: _rounded(inner) for key, inner in value.items()} if isinstance(value, dict) else float(f"{value:.2f}")

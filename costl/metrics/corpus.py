"""Moment retrieval in a corpus of videos: the numbers of TVR and its relatives, for sentences that are true in many videos.

- VCMR, video corpus moment retrieval: moments of all videos in one ranking. R@k at an IoU threshold is the share of sentences
  with a true moment among the first k. Escorcia et al., Temporal Localization of Moments in Video Collections with Natural
  Language (2019), on DiDeMo (Hendricks et al., Localizing Moments in Video with Natural Language, ICCV 2017); Lei et al., TVR
  (ECCV 2020), whose evaluator is `standalone_eval/eval.py` of jayleicn/TVRetrieval.
- VR, video retrieval (TVR): a video ranks by its best moment, and its times do not count.
- SVMR, single video moment retrieval (TVR): the ranking of the moments in a true video alone.
- NDCG@10 at an IoU threshold: Liang et al., TVR-Ranking (2024). In order of rank, each moment takes the free true moment of
  its video that it overlaps most, and gains 2^relevance - 1 where the IoU reaches the threshold. So a true moment counts once.

TVR has one true moment for each sentence. Here a sentence has all its true moments in all videos: one of them is a hit for
VCMR, VR and SVMR. SVMR of a sentence is the mean over its true videos.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costl.metrics.bootstrap import bootstrap_intervals
from costl.metrics.moments import interval_iou
from costl.metrics.rejection import rejection_metrics
from costl.pipeline.errors import UsageError, first_few

IOU_THRESHOLDS = (0.5, 0.7)
RANKS = (1, 10, 100)
NDCG_RANK = 10
NDCG_IOU = 0.5

RankedMoment = tuple[str, float, float, float]  # video, start_s, end_s, score


@dataclass(frozen=True)
class TrueMoment:
    """A moment [start_s, end_s) of a video at which a sentence is true. A higher `relevance`, above 0, counts more in NDCG."""

    video: str
    start_s: float
    end_s: float
    relevance: float = 1.0


@dataclass(frozen=True)
class CorpusTruth:
    """A sentence and all moments of the corpus at which it is true: none for an absent sentence.

    `absent` names the group of an absent sentence, such as "object"; rejection is also computed for each group.
    """

    sentence: str
    moments: tuple[TrueMoment, ...] = ()
    absent: str = ""


def score_corpus(rankings: Mapping[str, Sequence[RankedMoment]], truth: Sequence[CorpusTruth]) -> dict[str, Any]:
    """The corpus metrics of a search, in percent.

    `rankings` has the answer to each sentence of `truth`: moments of any videos, ranked by score; equal scores keep their
    order. SVMR needs moments of all true videos: one without any is a miss. -> `corpus`: VCMR-R1@0.5 and so on, VR-R1,
    SVMR-R1@0.5, NDCG10@0.5, over the sentences that are true somewhere. `intervals`: their 95 % bootstrap intervals over
    sentences. `rejection`: what `rejection_metrics` returns for the best scores of present sentences against those of `all`
    absent ones, and of each group; left out where no sentence is absent. `scored`: the numbers of present and absent sentences.

    Raises UsageError for a sentence that occurs twice, that has no ranking or no truth, and where no sentence is present.
    """
    _check_sentences(rankings, truth)
    ranked = {sentence: sorted(moments, key=lambda moment: -moment[3]) for sentence, moments in rankings.items()}
    present = [row for row in truth if row.moments]
    rows = [_values(ranked[row.sentence], row.moments) for row in present]
    values = {name: 100.0 * np.array([row[name] for row in rows]) for name in rows[0]}
    intervals = bootstrap_intervals(values)
    rejection = _rejection(ranked, truth)
    return {
        "corpus": {name: float(value.mean()) for name, value in values.items()},
        "intervals": {name: list(pair) for name, pair in intervals.items()},
        **({"rejection": rejection} if rejection else {}),
        "scored": {"present": len(present), "absent": len(truth) - len(present)},
    }


def _check_sentences(rankings: Mapping[str, Sequence[RankedMoment]], truth: Sequence[CorpusTruth]) -> None:
    counts = Counter(row.sentence for row in truth)
    problems = {
        "occurs more than once in the truth": {sentence for sentence, count in counts.items() if count > 1},
        "has no ranking. A sentence without an answer has an empty one": counts.keys() - rankings.keys(),
        "is ranked, but is not in the truth": rankings.keys() - counts.keys(),
    }
    for problem, wrong in problems.items():
        if wrong:
            raise UsageError(f"corpus: {first_few(map(repr, sorted(wrong)))}: {problem}.")
    if not any(row.moments for row in truth):
        raise UsageError(f"corpus: none of its {len(truth)} sentences is true in a video, so that nothing can be scored.")


def _values(ranked: Sequence[RankedMoment], truth: Sequence[TrueMoment]) -> dict[str, float]:
    """The value of one sentence for each number, 0 to 1."""
    windows: dict[str, list[TrueMoment]] = {}
    for moment in truth:
        windows.setdefault(moment.video, []).append(moment)
    best_iou = np.array([_ious(moment, windows.get(moment[0], ())).max(initial=0.0) for moment in ranked])
    videos = np.array([moment[0] for moment in ranked], dtype=object)
    own_ious = [best_iou[videos == video] for video in windows]
    first_videos = list(dict.fromkeys(videos))
    values = {f"VCMR-R{k}@{t}": float((best_iou[:k] >= t).any()) for t in IOU_THRESHOLDS for k in RANKS}
    values |= {f"VR-R{k}": float(any(video in windows for video in first_videos[:k])) for k in RANKS}
    values |= {
        f"SVMR-R{k}@{t}": sum(bool((iou[:k] >= t).any()) for iou in own_ious) / len(own_ious)
        for t in IOU_THRESHOLDS
        for k in RANKS
    }
    return values | {f"NDCG{NDCG_RANK}@{NDCG_IOU}": _ndcg(ranked[:NDCG_RANK], windows)}


def _ious(moment: RankedMoment, windows: Sequence[TrueMoment]) -> np.ndarray:
    """IoU [g] of a moment with true moments of its video."""
    _, start_s, end_s, _ = moment
    return interval_iou(np.array([start_s, end_s]), np.array([[w.start_s, w.end_s] for w in windows]).reshape(-1, 2))


def _ndcg(ranked: Sequence[RankedMoment], windows: Mapping[str, Sequence[TrueMoment]]) -> float:
    # Of equal overlaps the most relevant true moment is taken, as in TVR-Ranking's evaluator.
    free = {video: sorted(of_video, key=lambda moment: -moment.relevance) for video, of_video in windows.items()}
    gains = []
    for moment in ranked:
        candidates = free.get(moment[0], [])
        ious = _ious(moment, candidates)
        is_hit = ious.max(initial=0.0) >= NDCG_IOU
        gains.append(candidates.pop(int(ious.argmax())).relevance if is_hit else 0.0)
    ideal = sorted((moment.relevance for of_video in windows.values() for moment in of_video), reverse=True)
    return _dcg(gains) / _dcg(ideal[:NDCG_RANK])


def _dcg(relevances: Sequence[float]) -> float:
    """Discounted cumulative gain (Burges et al., Learning to Rank using Gradient Descent, 2005)."""
    gains = 2.0 ** np.array(relevances) - 1
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def _rejection(ranked: Mapping[str, Sequence[RankedMoment]], truth: Sequence[CorpusTruth]) -> dict[str, Any]:
    """Rejection metrics against all absent sentences, and against those of each group if there are several."""

    def best_scores(rows: Sequence[CorpusTruth]) -> list[float]:
        return [ranked[row.sentence][0][3] if ranked[row.sentence] else -np.inf for row in rows]

    present = best_scores([row for row in truth if row.moments])
    absent = [row for row in truth if not row.moments]
    groups = sorted({row.absent for row in absent} - {""})
    metrics = {"all": rejection_metrics(present, best_scores(absent))}
    metrics |= {name: rejection_metrics(present, best_scores([r for r in absent if r.absent == name])) for name in groups}
    return {name: part for name, part in metrics.items() if part}

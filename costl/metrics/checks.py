"""What no metric is computed from: rows that belong to nothing, that cannot be meant, or that nobody can score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from costl.data.annotations import Prediction, Query
from costl.metrics.highlights import clips_of
from costl.pipeline.errors import UsageError

NAMED = 3
# A window may end this far outside its video, so that times written with two decimals are not refused.
SLACK_S = 0.01
REMEDY = "Correct it, or score as the published evaluator does with --official."
UNSCORED = "the published evaluator cannot score it; leave out --official."


def by_checked_qid(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, benchmark: str, ranking: bool
) -> dict[int | str, Prediction]:
    """The predictions by qid. `ranking`: the benchmark has ratings alone. Raises UsageError without any truth, for a qid
    that occurs twice and for one that is not in the truth."""
    if not any(_has_truth(query, ranking) for query in queries):
        needed = "rated clips" if ranking else "windows or saliency"
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


def check_official(by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], *, ranking: bool) -> None:
    """Raises UsageError for what the published evaluators cannot score."""
    if not any(row.windows or row.saliency for row in by_qid.values()):
        raise UsageError("predictions: no windows and no saliency at all, expected a row for every query.")
    for part, truth in (("saliency", "clip_ids"),) if ranking else (("windows", "windows"), ("saliency", "clip_ids")):
        # A kind of prediction that nobody made, or a truth that nobody has, is left out as a whole.
        made, labelled = any(getattr(p, part) for p in by_qid.values()), any(getattr(q, truth) for q in queries)
        if not (made and labelled) and not ranking:
            continue
        for query in queries:
            if query.qid not in by_qid or not getattr(by_qid[query.qid], part):
                raise UsageError(f"query {query.qid!r} has no predicted {part}: {UNSCORED}")
            if not getattr(query, truth):
                raise UsageError(f"query {query.qid!r} has no true {part}: {UNSCORED}")


def check_strict(
    by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], *, ranking: bool, clip_s: float
) -> None:
    """Raises UsageError for a query without truth and for a prediction that cannot be meant."""
    for query in queries:
        if not _has_truth(query, ranking):
            needed = "no rated clips" if ranking else "neither windows nor saliency"
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


def _has_truth(query: Query, ranking: bool) -> bool:
    return bool(query.clip_ids or (query.windows and not ranking))


def listed(names: Sequence[int | str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more

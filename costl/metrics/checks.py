"""Refuses predictions and annotations that cannot be scored, before any metric is computed."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from costl.data.annotations import Prediction, Query
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.annotations import expected_clips, plain_name
from costl.pipeline.formats.strict_json import abbreviated

# A window may end this far outside its video, so that times written with two decimals are not refused.
TOLERANCE_S = 0.01
REMEDY = "Correct it, or score as the published evaluator does with --official."
UNSCORED = "The published evaluator cannot score it. Leave out --official."


def check_arguments(predictions: Sequence[Prediction], queries: Sequence[Query], clip_s: float) -> None:
    """Raises UsageError for arguments of `compute_metrics` of the wrong type, and for clips without length."""
    for name, rows, row_type in (("predictions", predictions, Prediction), ("queries", queries, Query)):
        if not (isinstance(rows, Sequence) and all(isinstance(row, row_type) for row in rows)):
            raise UsageError(f"{name} is {abbreviated(rows)}, expected a list of costl.{row_type.__name__}.")
    if not clip_s > 0:
        raise UsageError(f"clip_s is {clip_s}, expected seconds above zero.")


def index_by_qid(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, benchmark: str, ratings_only: bool
) -> dict[int | str, Prediction]:
    """The predictions by qid. `ratings_only`: the benchmark scores clips and has no moments.

    Raises UsageError when no query has labels, for a qid that occurs twice, and for a prediction whose qid is not among
    the queries.
    """
    if not any(_has_labels(query, ratings_only) for query in queries):
        needed = "rated clips" if ratings_only else "windows or rated clips"
        raise UsageError(
            f"truth: none of its {len(queries)} queries has {needed}, so that nothing can be scored "
            f"(benchmark {benchmark}). Pass a file with labels, or another --benchmark."
        )
    for name, rows in (("predictions", predictions), ("truth", queries)):
        for qid, count in Counter(row.qid for row in rows).items():
            if count > 1:
                raise UsageError(f"{name}: query {qid!r} occurs {count} times, expected once.")
    refuse_unknown_qids(predictions, queries, source="predictions", truth="the truth")
    return {prediction.qid: prediction for prediction in predictions}


def refuse_unknown_qids(predictions: Sequence[Prediction], queries: Sequence[Query], *, source: str, truth: str) -> None:
    """Raises UsageError for predictions whose qid is not among the queries, also if only its type differs: "7" is not 7."""
    known = {query.qid for query in queries}
    extra = [prediction.qid for prediction in predictions if prediction.qid not in known]
    if not extra:
        return
    same = {str(qid): qid for qid in known}
    found = f"{source}: no query {first_few(map(repr, extra))} in {truth} ({len(known)} queries)."
    if str(extra[0]) not in same:
        raise UsageError(f"{found} Is it of another split?")
    kinds = {int: "number", str: "text"}
    qid = same[str(extra[0])]
    raise UsageError(
        f"{found} The qid {extra[0]!r} is a {kinds[type(extra[0])]}, that of {truth} is the {kinds[type(qid)]} {qid!r}. "
        "Write it in the same way."
    )


def check_official(by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], *, ratings_only: bool) -> None:
    """Raises UsageError for what the published evaluators cannot score: a query without a prediction or without labels.

    A task that no prediction attempts or that no query has labels for is not checked: it is not scored either.
    """
    predictions = by_qid.values()
    if not any(prediction.windows or prediction.saliency for prediction in predictions):
        raise UsageError("predictions: no windows and no saliency at all, expected a row for every query.")
    tasks = {"saliency": "clip_ids"} if ratings_only else {"windows": "windows", "saliency": "clip_ids"}
    for predicted, labels in tasks.items():
        attempted = any(getattr(prediction, predicted) for prediction in predictions)
        labelled = any(getattr(query, labels) for query in queries)
        if not (attempted and labelled) and not ratings_only:
            continue
        for query in queries:
            if query.qid not in by_qid or not getattr(by_qid[query.qid], predicted):
                raise UsageError(f"query {query.qid!r} has no predicted {predicted}. {UNSCORED}")
            if not getattr(query, labels):
                raise UsageError(f"query {query.qid!r} has no true {predicted}. {UNSCORED}")


def check_strict(
    by_qid: Mapping[int | str, Prediction], queries: Sequence[Query], *, ratings_only: bool, clip_s: float
) -> None:
    """Raises UsageError for a query without labels, and for a prediction that names another video or sentence, has a window
    outside the video, or another number of saliency scores than the video has clips of `clip_s` seconds."""
    for query in queries:
        if not _has_labels(query, ratings_only):
            missing = "no rated clips" if ratings_only else "neither windows nor rated clips"
            raise UsageError(f"truth: query {query.qid!r} has {missing}, unlike others. Remove it or label it.")
        prediction = by_qid.get(query.qid)
        if prediction is not None:
            _check_prediction(prediction, query, clip_s)


def _check_prediction(prediction: Prediction, query: Query, clip_s: float) -> None:
    row = f"predictions: query {query.qid!r}"
    if prediction.vid and plain_name(prediction.vid) != plain_name(query.vid):
        raise UsageError(f"{row} names the video {prediction.vid!r}, expected {query.vid!r}.")
    if prediction.query and _words(prediction.query) != _words(query.query):
        raise UsageError(f"{row} is {prediction.query!r}, in the truth it is {query.query!r}. {REMEDY}")
    for start, end, _ in prediction.windows:
        if not -TOLERANCE_S <= start <= end <= query.duration_s + TOLERANCE_S:
            raise UsageError(
                f"{row}: window [{start}, {end}] is not inside its video of {query.duration_s} s. {REMEDY}"
            )
    clips = expected_clips(query, clip_s)
    scores = len(prediction.saliency)
    if scores and scores != clips:
        raise UsageError(f"{row} has {scores} saliency scores, its video {clips} clips. {REMEDY}")
    last_rated = max(query.clip_ids, default=0)
    if last_rated >= clips:
        raise UsageError(f"truth: query {query.qid!r}: clip {last_rated} is rated, but its video has {clips} clips.")


def _words(sentence: str) -> list[str]:
    return unicodedata.normalize("NFC", sentence).casefold().split()


def _has_labels(query: Query, ratings_only: bool) -> bool:
    return bool(query.clip_ids or (query.windows and not ratings_only))

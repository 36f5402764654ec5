"""What a split says against what its cache holds: told before anything is learned, scored or written."""

from __future__ import annotations

from collections.abc import Sequence

from costl.annotations import Query
from costl.dataset import RATED_CLIP_S, behind
from costl.highlights import clips_of
from pipeline.cache import CacheReader
from pipeline.errors import CacheError, UsageError, some

REMEDY = "Correct these rows or take them out, and run the same costl extract again."


def check_usable(queries: Sequence[Query], features: CacheReader, *, split: str) -> None:
    """Raises UsageError naming the queries whose truth lies behind the end of their video or whose sentence has no word,
    CacheError for those without words in the cache; what asks about a video without features is not looked at."""
    _check_words(queries, features, split)
    known = set(features.video_ids)
    late = [query for query in queries if query.vid in known and _late(query, features)]
    if late:
        named = (f"query {q.qid!r} {_late(q, features)} in {q.vid!r} ({_ends(q, features)})" for q in late)
        raise UsageError(
            f"{split}.jsonl: {len(late)} queries mean what comes after the end of their video: {some(named)}. {REMEDY}"
        )
    rated = [query for query in queries if max(query.clip_ids, default=0) >= clips_of(query, RATED_CLIP_S)]
    if rated:
        named = (
            f"query {q.qid!r}, clip {max(q.clip_ids)} of {clips_of(q, RATED_CLIP_S)} (counted from 0)" for q in rated
        )
        raise UsageError(f"{split}.jsonl: {len(rated)} queries rate a clip that is not there: {some(named)}. {REMEDY}")


def _check_words(queries: Sequence[Query], features: CacheReader, split: str) -> None:
    known = set(features.all_words())
    lost = [query for query in queries if query.query not in known]
    if lost:
        raise CacheError(
            f"{features.path}: no words of {len(lost)} queries of {split!r}: {_named(lost)}. Run the same costl extract "
            f"again, or costl extract --cache {features.path} --annotations {split}.jsonl"
        )
    # Each is checked as it is made: values that are no numbers are refused there.
    empty = [query for query in queries if not len(features.words(query.query).tokens)]
    if empty:
        raise UsageError(
            f"{split}.jsonl: {len(empty)} queries hold nothing that CLIP reads as a word: {_named(empty)}. {REMEDY}"
        )


def _late(query: Query, features: CacheReader) -> list[float]:
    """The first moment that begins too late for the last clip to stand for it; empty where none does."""
    end = behind(features.grid(query.vid))
    return next((list(window) for window in query.windows if window[0] * features.fps >= end), [])


def _ends(query: Query, features: CacheReader) -> str:
    said, lasts = query.duration_s, features.row(query.vid).duration_s
    return f"{lasts:g} s long" + (f", {said:g} by its annotation" if said != lasts else "")


def _named(queries: Sequence[Query]) -> str:
    return some(f"query {query.qid!r} {query.query!r}" for query in queries)

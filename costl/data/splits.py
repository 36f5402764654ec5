"""What a split says against what its cache holds: told before anything is learned, scored or written."""

from __future__ import annotations

from collections.abc import Sequence

from costl.data.annotations import Query, parse_jsonl
from costl.data.batch import RATED_CLIP_S, behind
from costl.metrics.highlights import clips_of
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, some

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
            f"again, or costl cache add-queries {features.path} --annotations {split}.jsonl"
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


def read_queries(features: CacheReader, split: str, *, domain: str = "") -> list[Query]:
    """The queries of a split, or those of one `domain` of it.

    Raises UsageError for a split or domain that the cache does not have, for a split without any query or without any
    video that has features, and with CacheError as `check_usable` does.
    """
    if split not in features.splits:
        raise UsageError(
            f"{features.path}: no split {split!r}, only {', '.join(features.splits) or 'none'}. Add it with "
            f"costl cache add-queries {features.path} --annotations {split}.jsonl"
        )
    queries = parse_jsonl(features.annotations(split), f"{split}.jsonl")
    if not queries:
        raise UsageError(f"{features.path}: split {split!r} is empty. Annotate it and run costl extract again.")
    asked = [query for query in queries if domain in ("", query.domain)]
    if not asked:
        known = ", ".join(sorted({query.domain for query in queries} - {""})) or "none"
        raise UsageError(f"{features.path}: split {split!r} has no domain {domain!r}, only {known}. Set data.domain.")
    # The labels of train serve without features, too: chance draws from their lengths. Training checks it by itself.
    if split != "train":
        _refuse_without_features(asked, features, split=split, domain=domain)
    check_usable(asked, features, split=split)
    return asked


def _refuse_without_features(queries: Sequence[Query], features: CacheReader, *, split: str, domain: str) -> None:
    """Raises UsageError where no query can be answered: every number would be 0 and say nothing about the model."""
    videos = {query.vid for query in queries}
    if videos & set(features.video_ids):
        return
    which = f"split {split!r}" + (f" in domain {domain!r}" if domain else "")
    raise UsageError(
        f"{features.path}: no video of {which} has features ({len(queries)} queries about {some(sorted(videos))}). "
        f"costl cache status {features.path} says why. Extract these videos, or go on without this split."
    )


def data_notes(split: str, queries: Sequence[Query], features: CacheReader) -> list[str]:
    """What a person should know before trusting a number: videos without features, durations that disagree."""
    known = set(features.video_ids)
    lost = sorted({query.vid for query in queries} - known)
    apart = {q.vid: abs(q.duration_s - features.row(q.vid).duration_s) for q in queries if q.vid in known}
    # A second clip's worth is no rounding any more: the annotation means another cut of the video.
    wrong = [vid for vid, seconds in apart.items() if seconds > max(RATED_CLIP_S, 1 / features.fps)]
    notes = []
    bare = sum(not (query.windows or query.clip_ids) for query in queries)
    if bare and split == "train":
        notes.append(
            f"{split}: {bare} of {len(queries)} queries have no label, and are learned from as wrong ones alone."
        )
    if lost:
        count = sum(query.vid not in known for query in queries)
        notes.append(
            f"{split}: {count} of {len(queries)} queries ask about videos without features ({', '.join(lost[:3])}); "
            "nothing is learned from them, and they count 0. costl cache status says why."
        )
    if wrong:
        worst = max(wrong, key=lambda vid: apart[vid])
        notes.append(
            f"{split}: {len(wrong)} videos are longer or shorter than their annotation says, "
            f"{worst} by {apart[worst]:.1f} s. Check that the annotation is of this very cut."
        )
    return notes

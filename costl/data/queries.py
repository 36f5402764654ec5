"""The queries of a split, and the checks of a split against its cache before training, scoring or writing."""

from __future__ import annotations

from collections.abc import Sequence

from costl.data.annotations import Query, parse_jsonl
from costl.pipeline.annotations import REMEDY, duration_notes, durations_s, late_moments
from costl.pipeline.cache.inspect import no_queries_message
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, first_few
from costl.pipeline.formats.annotations import cut_note


def read_queries(features: CacheReader, split: str, *, domain: str = "") -> list[Query]:
    """The queries of a split, or those of one `domain` of it.

    Raises UsageError for a split or domain that the cache does not have, and for a split without any query or without any
    video that has features; UsageError and CacheError as `check_queries` does.
    """
    if not features.splits:
        raise UsageError(no_queries_message(features.path))
    if split not in features.splits:
        raise UsageError(
            f"{features.path}: no split {split!r}, only {', '.join(features.splits)}. Add it with "
            f"costl cache add-queries {features.path} --annotations {split}.jsonl"
        )
    try:
        queries = parse_jsonl(features.annotations(split), f"{split}.jsonl")
    except UsageError as error:
        raise UsageError(f"{error}\nThese are the lines of the copy in {features.path}. {REMEDY}") from error
    if not queries:
        raise UsageError(f"{features.path}: split {split!r} is empty. Annotate it and run costl extract again.")
    of_domain = [query for query in queries if domain in ("", query.domain)]
    if not of_domain:
        domains = ", ".join(sorted({query.domain for query in queries} - {""})) or "none"
        raise UsageError(f"{features.path}: split {split!r} has no domain {domain!r}, only {domains}. Set data.domain.")
    # The labels of train are useful without features: the chance reference draws from their lengths. Training checks this.
    if split != "train":
        _refuse_split_without_features(of_domain, features, split=split, domain=domain)
    check_queries(of_domain, features, split=split)
    return of_domain


def unlabelled_videos(features: CacheReader) -> list[str]:
    """The videos with features that no query of any split is about; none while some split cannot be read."""
    try:
        splits = [parse_jsonl(features.annotations(split), f"{split}.jsonl") for split in features.splits]
    except UsageError:
        return []  # training must not depend on the labels of a test split
    named = {query.vid for queries in splits for query in queries}
    return [vid for vid in features.video_ids if vid not in named]


def check_queries(queries: Sequence[Query], features: CacheReader, *, split: str) -> None:
    """Compares the queries of a split with the cache. Queries about videos without features are passed over.

    Raises UsageError naming the queries with a moment after the end of the video, and those with a sentence that has no
    word; CacheError naming the queries whose words are not in the cache.
    """
    _check_words(queries, features, split)
    late = late_moments(split, queries, durations_s(features.rows), features.fps)
    if late:
        raise UsageError(late[0])


def data_notes(split: str, queries: Sequence[Query], features: CacheReader) -> list[str]:
    """Notes to read before trusting a number: queries without labels, videos without features, durations that differ."""
    notes = []
    unlabelled = sum(not (query.windows or query.clip_ids) for query in queries)
    if unlabelled and split == "train":
        notes.append(
            f"{split}: {unlabelled} of {len(queries)} queries have no label. Training uses them only as wrong sentences for "
            "other videos."
        )
    with_features = set(features.video_ids)
    missing = sorted({query.vid for query in queries} - with_features)
    if missing:
        count = sum(query.vid not in with_features for query in queries)
        notes.append(
            f"{split}: {count} of {len(queries)} queries ask about videos without features ({', '.join(missing[:3])}). "
            "They are not used in training, and they score 0. costl cache status says why."
        )
    notes += duration_notes(split, queries, durations_s(features.rows), features.fps)
    return [*notes, *cut_note(split, queries)]


def _refuse_split_without_features(queries: Sequence[Query], features: CacheReader, *, split: str, domain: str) -> None:
    """Raises UsageError if no video of the queries has features: every score would be 0, whatever the model."""
    videos = {query.vid for query in queries}
    if videos & set(features.video_ids):
        return
    name = f"split {split!r}" + (f" in domain {domain!r}" if domain else "")
    raise UsageError(
        f"{features.path}: no video of {name} has features ({len(queries)} queries about {first_few(sorted(videos))}). "
        f"costl cache status {features.path} says why. Extract these videos, or go on without this split."
    )


def _check_words(queries: Sequence[Query], features: CacheReader, split: str) -> None:
    sentences = set(features.word_table())
    missing = [query for query in queries if query.query not in sentences]
    if missing:
        raise CacheError(
            f"{features.path}: no words of {len(missing)} queries of {split!r}: {_names(missing)}. Run the same costl "
            f"extract again, or costl cache add-queries {features.path} --annotations {split}.jsonl"
        )
    # `words` also refuses values that are not finite.
    empty = [query for query in queries if not len(features.words(query.query).tokens)]
    if empty:
        raise UsageError(
            f"{split}.jsonl: {len(empty)} queries have no word that CLIP can read: {_names(empty)}. {REMEDY}"
        )


def _names(queries: Sequence[Query]) -> str:
    return first_few(f"query {query.qid!r} {query.query!r}" for query in queries)

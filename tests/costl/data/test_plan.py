"""The plan of an epoch: the order of queries, negative pairs, batches of similar lengths, and reading ahead."""

from __future__ import annotations

import random
import statistics
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch import MemoryCache, query

from costl.data.annotations import Query
from costl.data.loader import prefetch
from costl.data.sampler import MAX_QUERIES_PER_VIDEO, PlannedBatch, plan_epoch
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.grid import Grid


def many_queries(videos: int, each: int, *, texts: int = 1000) -> tuple[list[Query], MemoryCache]:
    """`each` queries about each of so many videos, with at most `texts` different sentences."""
    pairs = [(v, i) for v in range(videos) for i in range(each)]
    queries = [query(100 * v + i, f"v{v}", text=f"text {(v * each + i) % texts}") for v, i in pairs]
    return queries, MemoryCache({f"v{v}": 10.0 + v for v in range(videos)})


def epoch(queries, features, *, size=8, seed=0, negative_pairs=True) -> list[PlannedBatch]:
    generator = torch.Generator().manual_seed(seed)
    return plan_epoch(queries, features, batch_size=size, negative_pairs=negative_pairs, generator=generator)


# --- an epoch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("videos", "each", "size"), [(9, 3, 8), (5, 1, 2), (3, 30, 16), (1, 20, 32), (4, 7, 1)])
def test_every_query_is_in_an_epoch_once(videos, each, size):
    queries, features = many_queries(videos, each)
    batches = epoch(queries, features, size=size)
    assert Counter(q.qid for batch in batches for q in batch.queries) == Counter(q.qid for q in queries)
    assert max(len(batch.queries) for batch in batches) <= size
    for batch in batches:
        assert max(Counter(q.vid for q in batch.queries).values()) <= MAX_QUERIES_PER_VIDEO


def test_another_seed_changes_the_order_and_the_same_seed_repeats_it():
    queries, features = many_queries(9, 3)
    first, again, other = (
        [[q.qid for q in batch.queries] for batch in epoch(queries, features, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("texts", [2, 5, 1000])
@pytest.mark.parametrize("each", [1, 3, 20])
def test_a_negative_sentence_is_none_of_the_videos_own_sentences(texts, each):
    queries, features = many_queries(6, each, texts=texts)
    own = {q.vid: {p.query for p in queries if p.vid == q.vid} for q in queries}
    pairs = [pair for batch in epoch(queries, features, size=16) for pair in negative_pairs_of(batch)]
    assert all(text not in own[vid] for vid, text in pairs)
    assert pairs or texts <= each  # no negative sentence exists if every video uses every text


def negative_pairs_of(batch: PlannedBatch) -> list[tuple[str, str]]:
    """(video, sentence) of the negative pairs; checks that there is at most one for each video."""
    negative = [(batch.queries[j].vid, batch.queries[i].query) for i, j in batch.negative_pairs]
    assert len({vid for vid, _ in negative}) == len(negative)
    return negative


def test_every_video_has_a_negative_pair_only_with_negative_pairs_on():
    queries, features = many_queries(4, 2)
    (batch,) = epoch(queries, features, size=8)
    assert sorted(vid for vid, _ in negative_pairs_of(batch)) == ["v0", "v1", "v2", "v3"]
    (batch,) = epoch(queries, features, size=8, negative_pairs=False)
    assert batch.negative_pairs == ()


# --- batches of similar lengths ----------------------------------------------------------------------------------


class LengthsOnly:
    """A cache that has only the lengths of videos: a plan must not read features."""

    def __init__(self, clips: dict[str, int]):
        self.clips, self.fps = clips, 0.5

    def grid(self, video_id: str) -> Grid:
        return Grid(self.fps, 2.0 * self.clips[video_id])

    def tokens(self, video_id: str, *, clips=slice(None), patches: bool = True) -> np.ndarray:
        raise AssertionError(video_id)

    def joint_vectors(self, video_id: str, *, clips=slice(None)) -> np.ndarray:
        raise AssertionError(video_id)

    def words(self, query: str) -> SentenceTokens:
        raise AssertionError(query)


def queries_of_lengths(clips: list[int], each: int) -> tuple[list[Query], LengthsOnly]:
    """`each` queries about each of the videos with these numbers of clips."""
    features = LengthsOnly({f"v{i}": count for i, count in enumerate(clips)})
    queries = [
        Query(100 * i + j, f"text {j}", f"v{i}", 2.0 * count) for i, count in enumerate(clips) for j in range(each)
    ]
    return queries, features


def plan_of(queries, features, *, bucket: int, size: int = 8, seed: int = 0) -> list[PlannedBatch]:
    generator = torch.Generator().manual_seed(seed)
    options = {"negative_pairs": True, "generator": generator, "bucket_batches": bucket}
    return plan_epoch(queries, features, batch_size=size, **options)


def padding(plan: list[PlannedBatch], features: LengthsOnly) -> float:
    """The share of clips that are padding."""
    lengths = [[features.clips[vid] for vid in {q.vid for q in batch.queries}] for batch in plan]
    return 1 - sum(map(sum, lengths)) / sum(max(of_batch) * len(of_batch) for of_batch in lengths)


@settings(max_examples=40, deadline=None)
@given(
    clips=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    each=st.integers(1, 20),
    size=st.integers(1, 16),
    bucket=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_with_buckets_every_query_is_in_one_batch_of_allowed_size(clips, each, size, bucket, seed):
    queries, features = queries_of_lengths(clips, each)
    plan = plan_of(queries, features, bucket=bucket, size=size, seed=seed)
    assert sorted(q.qid for batch in plan for q in batch.queries) == sorted(q.qid for q in queries)
    assert max(len(batch.queries) for batch in plan) <= size
    assert plan == plan_of(queries, features, bucket=bucket, size=size, seed=seed)
    for batch in plan:
        vids = [q.vid for q in batch.queries]
        changes = sum(vid != previous for vid, previous in zip(vids, [None, *vids], strict=False))
        assert len(set(vids)) == changes  # one group of queries for each video
        assert all(batch.queries[i].vid != vids[j] for i, j in batch.negative_pairs)


def test_buckets_save_padding_and_change_the_order_in_every_epoch():
    rng = random.Random(0)
    queries, features = queries_of_lengths([round(rng.lognormvariate(3, 0.8)) + 1 for _ in range(400)], 1)
    share = {bucket: padding(plan_of(queries, features, bucket=bucket), features) for bucket in (1, 2, 8, 32)}
    assert share[1] > share[2] > share[8] > share[32] and share[8] < share[1] / 2
    assert {len(plan_of(queries, features, bucket=bucket)) for bucket in share} == {50}
    one, other = (plan_of(queries, features, bucket=8, seed=seed) for seed in (1, 2))
    assert len(video_pairs(one) & video_pairs(other)) < len(video_pairs(one)) / 2  # other videos share a batch
    lengths = [statistics.mean(features.clips[q.vid] for q in batch.queries) for batch in one]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.5  # batches are not sorted by length


def video_pairs(plan: list[PlannedBatch]) -> set[tuple[str, str]]:
    """The pairs of videos that share a batch."""
    return {(a.vid, b.vid) for batch in plan for a in batch.queries for b in batch.queries if a.vid < b.vid}


def test_without_buckets_the_order_of_earlier_versions_is_unchanged():
    queries, features = queries_of_lengths([5, 9, 7, 5, 30, 2], 2)
    qids = [[q.qid for q in batch.queries] for batch in plan_of(queries, features, bucket=1, size=4)]
    assert qids == [[201, 200, 400, 401], [500, 501, 100, 101], [301, 300, 0, 1]]


# --- reading ahead -----------------------------------------------------------------------------------------------


def prefetch_numbers(numbers: Any, count: int = 2) -> Any:
    """`prefetch` works for any objects; numbers are easier to follow than batches."""
    return prefetch(numbers, count)


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_prefetch_yields_all_batches_in_order(count):
    assert list(prefetch_numbers(iter(range(1, 21)), count)) == list(range(1, 21))
    assert list(prefetch_numbers(iter(()), count)) == []


def test_prefetch_reads_at_most_count_batches_ahead_in_another_thread():
    read, threads = [], set()

    def batches():
        for i in range(1, 11):
            read.append(i)
            threads.add(threading.get_ident())
            yield i

    for i in prefetch_numbers(batches(), 2):
        assert len(read) <= i + 2
    assert threading.get_ident() not in threads


def test_prefetch_raises_an_error_after_the_batches_before_it():
    def batches():
        yield from (1, 2, 3)
        raise ValueError("a broken part")

    received = []
    with pytest.raises(ValueError, match="a broken part"):
        for batch in prefetch_numbers(batches()):
            received.append(batch)
    assert received == [1, 2, 3]


def test_prefetch_ends_its_thread_when_it_is_closed():
    before = threading.active_count()
    batches = prefetch_numbers(iter(range(1, 1000)))
    assert next(batches) == 1
    batches.close()
    assert threading.active_count() == before

"""Batches: what is padded and what is real, targets in clips, who shares a batch with whom."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from costl.data.annotations import Query
from costl.data.batch import QUERIES_OF_ONE_VIDEO, Batch, Features, ahead, collate, evaluation_batches, training_batches
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.grid import Grid

C, W, E = 6, 8, 5


class Memory:
    """A cache in memory: tokens say which video, clip and patch they are of, words which text; counts what is read."""

    def __init__(self, durations_s: dict[str, float], *, fps: float = 0.5):
        self.fps, self.patch_grid, self.durations_s = fps, (2, 2), durations_s
        ones = np.ones(C, np.float32)
        self.joint = Joint(ones, ones, 1e-5, np.ones((C, E), np.float32), 100.0)
        self.reads: Counter[str] = Counter()
        self.texts: dict[str, int] = {}

    def grid(self, video_id: str) -> Grid:
        return Grid(self.fps, self.durations_s[video_id])

    def tokens(self, video_id: str, *, clips=slice(None), patches: bool = True) -> np.ndarray:
        self.reads[video_id] += 1
        number = 1 + list(self.durations_s).index(video_id)
        clip, patch, channel = np.ogrid[: self.grid(video_id).clips, :5, :C]
        tokens = (number * 100 + clip * 10 + patch + 0 * channel).astype(np.float16)
        return tokens[clips, : None if patches else 1]

    def words(self, query: str) -> Words:
        number = self.texts.setdefault(query, len(self.texts) + 1)
        return Words(np.full((len(query.split()), W), number, np.float16), np.full(E, E**-0.5, np.float32), False)


def query(qid, vid="a", windows=((2, 6),), *, text="a cat", duration=10.0, clip_ids=(), saliency=()) -> Query:
    return Query(qid, text, vid, duration, tuple(windows), tuple(clip_ids), tuple(saliency))


def many(videos: int, each: int, *, texts: int = 1000) -> tuple[list[Query], Memory]:
    """`each` queries about every one of so many videos, in `texts` different words."""
    places = [(v, i) for v in range(videos) for i in range(each)]
    queries = [query(100 * v + i, f"v{v}", text=f"text {(v * each + i) % texts}") for v, i in places]
    return queries, Memory({f"v{v}": 10.0 + v for v in range(videos)})


def epoch(queries, features, *, size=8, seed=0, wrong=True) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    return list(training_batches(queries, features, batch_size=size, patches=True, wrong=wrong, generator=draw))


# --- what a batch holds ------------------------------------------------------------------------------------------


def test_the_memory_of_these_tests_is_what_a_batch_asks_of_a_cache():
    assert isinstance(Memory({"a": 1.0}), Features)


def test_every_mask_is_true_exactly_where_something_is_real():
    features = Memory({"a": 10.0, "b": 6.0})
    rows = [query(1, "a", ((0, 2), (4, 6)), text="one two three"), query(2, "b", ((0, 6),), text="one", duration=6.0)]
    batch = collate(rows, features, patches=True)
    assert batch.clips == (5, 3)
    assert batch.frame_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.word_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.moment_mask.tolist() == [[True, True], [True, False]]
    assert batch.tokens.shape == (2, 5, 5, C)
    assert batch.tokens[..., 0].tolist() == [
        [[100 + 10 * t + p for p in range(5)] for t in range(5)],
        [[(200 + 10 * t + p) * (t < 3) for p in range(5)] for t in range(5)],
    ]
    assert batch.words[:, :, 0].tolist() == [[1, 1, 1], [2, 0, 0]]
    assert (batch.tokens.dtype, batch.words.dtype) == (torch.float32, torch.float32)


def test_without_patches_only_the_frame_token_is_there():
    batch = collate([query(1)], Memory({"a": 10.0}), patches=False)
    assert batch.tokens[0, :, :, 0].tolist() == [[100], [110], [120], [130], [140]]


def test_moments_are_in_clips_and_inside_the_video_that_is_there():
    features = Memory({"a": 10.0})  # five clips of two seconds; the annotation says 30 s
    batch = collate([query(1, windows=((1, 5), (7, 30), (12, 30)), duration=30.0)], features, patches=True)
    assert batch.moments[0].tolist() == [[0.5, 2.5], [3.5, 5.0]]  # the third is beyond the end
    assert batch.relevant[0].tolist() == [True, True, False, True, True]  # centres 0.5, 1.5, 2.5, ...; ends are outside
    assert batch.ratings[0].tolist() == batch.relevant[0].float().tolist()


def test_ratings_are_the_mean_of_the_annotators_out_of_four_on_the_grid_of_the_features():
    rated = query(1, clip_ids=(1, 2), saliency=((4, 2, 3), (0, 0, 1)))
    two_seconds = collate([rated], Memory({"a": 10.0}, fps=0.5), patches=True)
    assert two_seconds.ratings[0].tolist() == pytest.approx([0, 0.75, 1 / 12, 0, 0])
    one_second = collate([rated], Memory({"a": 10.0}, fps=1.0), patches=True)
    assert one_second.ratings[0].tolist() == pytest.approx([0, 0, 0.75, 0.75, 1 / 12, 1 / 12, 0, 0, 0, 0])


def test_a_query_without_label_has_no_target():
    batch = collate([query(1, windows=()), query(2)], Memory({"a": 10.0}), patches=True)
    assert batch.moment_mask.tolist() == [[False], [True]]
    assert not batch.relevant[0].any() and not batch.ratings[0].any()


def test_wrong_pairs_come_last_and_carry_no_target():
    features = Memory({"a": 10.0, "b": 6.0})
    rows = [query(1, "a", text="one two"), query(2, "b", duration=6.0, text="three")]
    batch = collate(rows, features, patches=True, wrong=[(0, 1), (1, 0)])
    assert batch.right.tolist() == [True, True, False, False]
    assert batch.video.tolist() == [0, 1, 1, 0]
    assert torch.equal(batch.words[2:], batch.words[:2])
    assert not (batch.moment_mask[2:].any() or batch.relevant[2:].any() or batch.ratings[2:].any())
    assert batch.queries == tuple(rows)


def test_the_tokens_of_a_video_are_read_once_a_batch():
    features = Memory({"a": 10.0, "b": 6.0})
    rows = [query(i, "ab"[i % 2], windows=((0, 2),), duration=6.0) for i in range(6)]
    batch = collate(rows, features, patches=True, wrong=[(0, 1)])
    assert features.reads == {"a": 1, "b": 1}
    assert len(batch.tokens) == 2
    assert batch.video.tolist() == [0, 1, 0, 1, 0, 1, 1]


def test_a_batch_moves_as_a_whole():
    batch = collate([query(1)], Memory({"a": 10.0}), patches=True)
    moved = batch.to(torch.device("meta"))
    tensors = [value for value in moved.model_inputs().values() if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in tensors} == {"meta"}
    assert moved.ratings.device.type == "meta"
    assert moved.queries == batch.queries


def test_a_batch_counts_what_the_model_would_have_to_read_from_a_device():
    features = Memory({"a": 10.0, "b": 6.0})
    rows = [query(1, "a", text="one two three"), query(2, "b", text="one", duration=6.0), query(3, "b", duration=6.0)]
    batch = collate(rows, features, patches=True, wrong=[(0, 1)])
    assert batch.pairs == int(batch.right.sum()) == 3
    assert batch.most_queries == 3  # two sentences about video b, and a wrong one
    assert batch.real_words == int(batch.word_mask.sum()) == 3 + 1 + 2 + 3
    on_meta = batch.to(torch.device("meta"))  # a device that no number can be read from
    assert (on_meta.pairs, on_meta.most_queries, on_meta.real_words) == (3, 3, 9)


def test_moments_have_no_column_where_no_query_of_the_batch_has_one():
    unlabelled, labelled = query(1, windows=()), query(2, windows=((0, 2), (4, 6)))
    features = Memory({"a": 10.0})
    assert collate([unlabelled], features, patches=True).moments.shape == (1, 0, 2)
    assert collate([unlabelled, labelled], features, patches=True).moments.shape == (2, 2, 2)


# --- an epoch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("videos", "each", "size"), [(9, 3, 8), (5, 1, 2), (3, 30, 16), (1, 20, 32), (4, 7, 1)])
def test_every_query_is_asked_once_in_an_epoch(videos, each, size):
    queries, features = many(videos, each)
    batches = epoch(queries, features, size=size)
    assert Counter(q.qid for batch in batches for q in batch.queries) == Counter(q.qid for q in queries)
    assert max(len(batch.queries) for batch in batches) <= size
    for batch in batches:
        assert max(Counter(q.vid for q in batch.queries).values()) <= QUERIES_OF_ONE_VIDEO
    evaluated = evaluation_batches(queries, features, batch_size=size, patches=True)
    asked = [q.qid for batch in evaluated for q in batch.queries]
    assert sorted(asked) == sorted(q.qid for q in queries)


def test_an_epoch_is_another_order_and_the_same_seed_the_same():
    queries, features = many(9, 3)
    first, again, other = (
        [[q.qid for q in batch.queries] for batch in epoch(queries, features, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("texts", [2, 5, 1000])
@pytest.mark.parametrize("each", [1, 3, 20])
def test_a_wrong_sentence_is_about_another_video_and_never_one_that_its_own_queries_use(texts, each):
    queries, features = many(6, each, texts=texts)
    own = {q.vid: {p.query for p in queries if p.vid == q.vid} for q in queries}
    pairs = [pair for batch in epoch(queries, features, size=16) for pair in wrong_pairs(batch, features)]
    assert all(text not in own[vid] for vid, text in pairs)
    assert pairs or texts <= each  # where every video uses every text there is none to ask


def wrong_pairs(batch: Batch, features: Memory) -> list[tuple[str, str]]:
    """(video, sentence put to it) of the rows that are not right, read back from the tensors; one a video at most."""
    vids, texts = list(dict.fromkeys(q.vid for q in batch.queries)), list(features.texts)
    wrong = [(vids[v], texts[int(w[0, 0]) - 1]) for v, w in zip(batch.video, batch.words, strict=True)]
    wrong = [pair for pair, right in zip(wrong, batch.right.tolist(), strict=True) if not right]
    assert len({vid for vid, _ in wrong}) == len(wrong)
    assert {text for _, text in wrong} <= {q.query for q in batch.queries}
    return wrong


def test_every_video_gets_a_wrong_sentence_where_there_is_one_and_none_where_not_wanted():
    queries, features = many(4, 2)
    (batch,) = epoch(queries, features, size=8)
    assert sorted(vid for vid, _ in wrong_pairs(batch, features)) == ["v0", "v1", "v2", "v3"]
    (batch,) = epoch(queries, features, size=8, wrong=False)
    assert batch.right.all()


# --- ahead of the model ------------------------------------------------------------------------------------------


def numbers_ahead(numbers: Any, count: int = 2) -> Any:
    """`ahead` does not care what it hands on; numbers are easier to follow than batches."""
    return ahead(numbers, count)


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_ahead_yields_all_in_order(count):
    assert list(numbers_ahead(iter(range(1, 21)), count)) == list(range(1, 21))
    assert list(numbers_ahead(iter(()), count)) == []


def test_ahead_prepares_in_another_thread_no_more_than_it_was_asked_to():
    made, threads = [], set()

    def batches():
        for i in range(1, 11):
            made.append(i)
            threads.add(threading.get_ident())
            yield i

    for i in numbers_ahead(batches(), 2):
        assert len(made) <= i + 2
    assert threading.get_ident() not in threads


def test_ahead_passes_on_an_error_after_what_came_before_it():
    def batches():
        yield from (1, 2, 3)
        raise ValueError("a broken part")

    seen = []
    with pytest.raises(ValueError, match="a broken part"):
        for batch in numbers_ahead(batches()):
            seen.append(batch)
    assert seen == [1, 2, 3]


def test_ahead_stops_when_nobody_wants_more():
    before = threading.active_count()
    running = numbers_ahead(iter(range(1, 1000)))
    assert next(running) == 1
    running.close()
    assert threading.active_count() == before

"""Batches: padding and masks, targets in clips, negative pairs, and the move to a device."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from costl.data.annotations import Query
from costl.data.batch import Features, collate
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.grid import Grid

C, W, E = 6, 8, 5


class MemoryCache:
    """A cache in memory. A token encodes its video, clip and patch, a word its text. Counts the reads of each video."""

    def __init__(self, durations_s: dict[str, float], *, fps: float = 0.5):
        self.fps, self.patch_grid, self.durations_s = fps, (2, 2), durations_s
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

    def joint_vectors(self, video_id: str, *, clips=slice(None)) -> np.ndarray:
        return np.full((self.grid(video_id).clips, E), E**-0.5, np.float32)[clips]

    def words(self, query: str) -> SentenceTokens:
        number = self.texts.setdefault(query, len(self.texts) + 1)
        return SentenceTokens(
            np.full((len(query.split()), W), number, np.float16), np.full(E, E**-0.5, np.float32), False
        )


def query(qid, vid="a", windows=((2, 6),), *, text="a cat", duration=10.0, clip_ids=(), saliency=()) -> Query:
    return Query(qid, text, vid, duration, tuple(windows), tuple(clip_ids), tuple(saliency))


# --- contents -------------------------------------------------------------------------------------------------


def test_the_cache_in_memory_implements_the_features_protocol():
    assert isinstance(MemoryCache({"a": 1.0}), Features)


def test_every_mask_is_true_exactly_where_data_is_real():
    features = MemoryCache({"a": 10.0, "b": 6.0})
    rows = [query(1, "a", ((0, 2), (4, 6)), text="one two three"), query(2, "b", ((0, 6),), text="one", duration=6.0)]
    batch = collate(rows, features, patches=True)
    assert batch.frame_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.inputs.word_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.moment_mask.tolist() == [[True, True], [True, False]]
    assert batch.inputs.tokens.shape == (2, 5, 5, C)
    assert batch.inputs.tokens[..., 0].tolist() == [
        [[100 + 10 * t + p for p in range(5)] for t in range(5)],
        [[(200 + 10 * t + p) * (t < 3) for p in range(5)] for t in range(5)],
    ]
    assert batch.inputs.words[:, :, 0].tolist() == [[1, 1, 1], [2, 0, 0]]
    assert (batch.inputs.tokens.dtype, batch.inputs.words.dtype) == (torch.float32, torch.float32)


def test_without_patches_a_batch_has_only_the_frame_token():
    batch = collate([query(1)], MemoryCache({"a": 10.0}), patches=False)
    assert batch.inputs.tokens[0, :, :, 0].tolist() == [[100], [110], [120], [130], [140]]


def test_moments_are_in_clips_and_cut_at_the_end_of_the_video():
    features = MemoryCache({"a": 10.0})  # five clips of two seconds; the annotation has 30 s
    batch = collate([query(1, windows=((1, 5), (7, 30), (12, 30)), duration=30.0)], features, patches=True)
    assert batch.moments[0].tolist() == [[0.5, 2.5], [3.5, 5.0]]  # the third is after the end
    assert batch.relevant[0].tolist() == [
        True,
        True,
        False,
        True,
        True,
    ]  # centres 0.5, 1.5, 2.5, ...; ends do not belong to a moment
    assert batch.ratings[0].tolist() == batch.relevant[0].float().tolist()


def test_ratings_are_the_mean_over_annotators_on_the_feature_grid():
    rated = query(1, clip_ids=(1, 2), saliency=((4, 2, 3), (0, 0, 1)))
    two_seconds = collate([rated], MemoryCache({"a": 10.0}, fps=0.5), patches=True)
    assert two_seconds.ratings[0].tolist() == pytest.approx([0, 0.75, 1 / 12, 0, 0])
    one_second = collate([rated], MemoryCache({"a": 10.0}, fps=1.0), patches=True)
    assert one_second.ratings[0].tolist() == pytest.approx([0, 0, 0.75, 0.75, 1 / 12, 1 / 12, 0, 0, 0, 0])


def test_a_query_without_label_has_no_target():
    batch = collate([query(1, windows=()), query(2)], MemoryCache({"a": 10.0}), patches=True)
    assert batch.moment_mask.tolist() == [[False], [True]]
    assert not batch.relevant[0].any() and not batch.ratings[0].any()


def test_negative_pairs_come_last_and_have_no_target():
    features = MemoryCache({"a": 10.0, "b": 6.0})
    rows = [query(1, "a", text="one two"), query(2, "b", duration=6.0, text="three")]
    batch = collate(rows, features, patches=True, negative_pairs=[(0, 1), (1, 0)])
    assert len(batch.queries) == 2
    assert batch.video.tolist() == [0, 1, 1, 0]
    assert torch.equal(batch.inputs.words[2:], batch.inputs.words[:2])
    assert not (batch.moment_mask[2:].any() or batch.relevant[2:].any() or batch.ratings[2:].any())
    assert batch.queries == tuple(rows)


def test_the_tokens_of_a_video_are_read_once_for_each_batch():
    features = MemoryCache({"a": 10.0, "b": 6.0})
    rows = [query(i, "ab"[i % 2], windows=((0, 2),), duration=6.0) for i in range(6)]
    batch = collate(rows, features, patches=True, negative_pairs=[(0, 1)])
    assert features.reads == {"a": 1, "b": 1}
    assert len(batch.inputs.tokens) == 2
    assert batch.video.tolist() == [0, 1, 0, 1, 0, 1, 1]


def test_all_tensors_of_a_batch_move_to_the_device():
    batch = collate([query(1)], MemoryCache({"a": 10.0}), patches=True)
    moved = batch.to(torch.device("meta"))
    tensors = [value for value in vars(moved.inputs).values() if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in tensors} == {"meta"}
    assert moved.ratings.device.type == "meta"
    assert moved.queries == batch.queries


def test_a_batch_counts_queries_and_words_before_it_moves_to_a_device():
    features = MemoryCache({"a": 10.0, "b": 6.0})
    rows = [query(1, "a", text="one two three"), query(2, "b", text="one", duration=6.0), query(3, "b", duration=6.0)]
    batch = collate(rows, features, patches=True, negative_pairs=[(0, 1)])
    assert batch.inputs.most_queries == 3  # two queries about video b, and a negative pair
    assert batch.inputs.real_words == int(batch.inputs.word_mask.sum()) == 3 + 1 + 2 + 3
    on_meta = batch.to(torch.device("meta"))  # no number can be read from this device
    assert (on_meta.inputs.most_queries, on_meta.inputs.real_words) == (3, 9)


def test_moments_have_no_column_if_no_query_has_a_moment():
    unlabelled, labelled = query(1, windows=()), query(2, windows=((0, 2), (4, 6)))
    features = MemoryCache({"a": 10.0})
    assert collate([unlabelled], features, patches=True).moments.shape == (1, 0, 2)
    assert collate([unlabelled, labelled], features, patches=True).moments.shape == (2, 2, 2)


def test_processes_share_the_videos_of_a_batch_and_know_all_targets():
    features = MemoryCache({"a": 10.0, "b": 6.0, "c": 4.0})
    rows = [query(1, "a"), query(2, "b", text="one two three"), query(3, "c"), query(4, "a")]
    whole = collate(rows, features, patches=True, negative_pairs=[(0, 1)])
    features.reads.clear()
    parts = [collate(rows, features, patches=True, negative_pairs=[(0, 1)], rank=r, world_size=4) for r in range(4)]
    assert features.reads == {"a": 2, "b": 1, "c": 1}  # the last process has no video and computes the first one
    assert [part.share.videos.tolist() for part in parts] == [[0], [1], [2], []]
    assert [part.share.rows.tolist() for part in parts] == [[0, 3], [1, 4], [2], []]
    for part, vid in zip(parts, "abca", strict=True):
        for name in ("video", "frame_mask", "moments", "moment_mask", "ratings", "relevant"):
            assert torch.equal(getattr(part, name), getattr(whole, name)), name
        assert part.share.real_words == whole.inputs.real_words
        number = "abc".index(vid)
        assert torch.equal(part.inputs.tokens[0], whole.inputs.tokens[number])
        assert torch.equal(part.inputs.words, whole.inputs.words[whole.video == number])

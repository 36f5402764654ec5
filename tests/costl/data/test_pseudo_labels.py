"""Pseudo-labels: where CLIP sees a sentence, in videos that the labels do not say it about, and never in held-out videos."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_batch import MemoryCache, query

from costl.data.pseudo_labels import pseudo_labels
from costl.data.queries import unlabelled_videos
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.train import train
from costl.training import setup
from costl.training.distributed import SINGLE_PROCESS
from costl.training.setup import start_training

PLACES = {("red", "a"): (2, 4), ("red", "b"): (7, 9), ("blue", "a"): (5, 8), ("blue", "c"): (0, 2)}  # in clips
WORDS = ("red", "blue", "green")


class SeenCache(MemoryCache):
    """CLIP sees the word of a sentence in the clips of PLACES, and nothing elsewhere."""

    joint = JointSpace(3, 100.0)

    def joint_vectors(self, video_id, *, clips=slice(None)):
        vectors = np.zeros((self.grid(video_id).clips, 3), np.float32)
        for (word, vid), (start, end) in PLACES.items():
            if vid == video_id:
                vectors[start:end, WORDS.index(word)] = 1
        return vectors[clips]

    def words(self, query):
        sentence = np.eye(3, dtype=np.float32)[WORDS.index(query)]
        return SentenceTokens(np.ones((1, 8), np.float16), sentence, False)


def drawn(labels, count, seed=0):
    return labels.draw(count, torch.Generator().manual_seed(seed))


def cache():
    return SeenCache(dict.fromkeys("abc", 20.0))


@given(st.integers(0, 2**32 - 1))
def test_a_pseudo_label_is_where_clip_sees_the_sentence(seed):
    """Of the candidates the one that CLIP sees best is taken. Only "green" is seen nowhere."""
    labels = pseudo_labels([query(1, "a", text="red"), query(2, "b", text="blue")], cache(), ["c"])
    for label in drawn(labels, 9, seed):
        place = PLACES.get((label.query, label.vid))
        if place:
            assert label.windows == ((2.0 * place[0], 2.0 * place[1]),)
        assert label.query not in {"a": ["red"], "b": ["blue"]}.get(label.vid, [])


def test_a_sentence_that_clip_sees_is_preferred():
    labels = pseudo_labels([query(i, "b", text=text) for i, text in enumerate(WORDS)], cache(), ["c"])
    texts = [label.query for seed in range(99) for label in drawn(labels, 1, seed) if label.vid == "c"]
    # Four candidates have it in 80 % of the draws. A third would be chance.
    assert len(texts) > 30 and texts.count("blue") > 0.6 * len(texts)


def test_the_same_generator_draws_the_same():
    labels = pseudo_labels([query(1, "a", text="red"), query(2, "b", text="blue")], cache(), ["c"])
    assert drawn(labels, 5) == drawn(labels, 5)
    assert len({tuple(drawn(labels, 2, seed)) for seed in range(9)}) > 1


def test_a_single_sentence_about_the_only_video_has_none():
    assert not drawn(pseudo_labels([query(1, "a", text="red")], cache(), []), 50)


def test_moments_of_a_pseudo_label_do_not_overlap(world):
    features = CacheReader(world.cache)
    training = start(world.cache)
    labels = training.pseudo_labels.draw(200, torch.Generator().manual_seed(1))
    assert len(labels) > 20 and any(len(label.windows) > 1 for label in labels)
    for label in labels:
        ends = np.array(label.windows).ravel()
        assert (np.diff(ends) >= 0).all() and ends[-1] <= features.grid(label.vid).duration_s


def start(cache_path, *overrides, out=None):
    folder = out or cache_path.parent / "run-of-pseudo-labels"
    return start_training(cache_path, config=(), overrides=overrides, out=folder, device="cpu", ranks=SINGLE_PROCESS)


@pytest.fixture
def unlabelled(world, tmp_path):
    """A copy of the world in which one training video has no query any more."""
    copy = world.copy(tmp_path / "data")
    lines = CacheReader(world.cache).annotations("train").splitlines()
    vid = json.loads(lines[0])["vid"]
    copy.annotate(copy.cache, train="\n".join(line for line in lines if json.loads(line)["vid"] != vid))
    return copy, vid


def test_videos_without_queries_are_used_and_held_out_ones_are_not(unlabelled):
    copy, vid = unlabelled
    features = CacheReader(copy.cache)
    assert unlabelled_videos(features) == [vid]
    training = start(copy.cache)
    vids = {label.vid for label in training.pseudo_labels.draw(400, torch.Generator().manual_seed(0))}
    assert vids == {vid} | {query.vid for query in training.queries}


def test_a_split_that_cannot_be_read_names_any_video(unlabelled):
    copy, _ = unlabelled
    copy.annotate(copy.cache, test="no JSON")
    assert unlabelled_videos(CacheReader(copy.cache)) == []


def test_an_epoch_has_the_pseudo_labels_and_counts_only_labelled_queries(world, tmp_path):
    updates = []
    train(
        world.cache,
        overrides=["train.epochs=2", "train.pseudo_labels=30"],
        out=tmp_path / "run",
        device="cpu",
        progress=lambda update: updates.append(update) if update.stage == "train" else None,
    )
    training = start(world.cache, "train.pseudo_labels=30", out=tmp_path / "b")
    assert max(update.done for update in updates) == updates[-1].total == 2 * len(training.queries)
    planned = [query for batch in training.plan_epoch(torch.Generator().manual_seed(0)) for query in batch.queries]
    assert {query.qid for query in training.queries} < {query.qid for query in planned}
    assert 10 < sum(str(query.qid).startswith("pseudo-label") for query in planned) <= 30


@pytest.mark.parametrize(("limit", "epochs"), [(180, [0, 1, 2, 3]), (12, [0, 1]), (0, [])])
def test_with_more_queries_than_the_limit_the_last_epochs_have_none(world, tmp_path, monkeypatch, limit, epochs):
    monkeypatch.setattr(setup, "PSEUDO_LABEL_QUERIES", limit)  # the world has 24 training queries
    training = start(world.cache, "train.epochs=4", "train.pseudo_labels=9", out=tmp_path / "run")
    found = []
    for epoch in range(4):
        training.state.epoch = epoch
        plan = training.plan_epoch(torch.Generator().manual_seed(0))
        if any(str(query.qid).startswith("pseudo-label") for batch in plan for query in batch.queries):
            found.append(epoch)
    assert found == epochs


def test_labels_without_moments_have_no_pseudo_labels(world, tmp_path):
    rows = [json.loads(line) for line in CacheReader(world.cache).annotations("train").splitlines()]
    rated = "\n".join(json.dumps(row | {"relevant_windows": []}) for row in rows)
    copy = world.copy(tmp_path / "data", train=rated)
    assert start(copy.cache, "train.select=HL-min-VeryGood-mAP").pseudo_labels is None

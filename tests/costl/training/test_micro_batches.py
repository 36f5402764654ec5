"""A batch in shares has the loss and the gradient of the whole batch, whoever works through them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.config import load_config
from costl.data.annotations import Query, parse_jsonl
from costl.data.batch import training_batches
from costl.model.negatives import rivals_of, ways
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import Words
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.grid import Grid
from costl.train import train
from costl.training.distributed import ALONE, Ranks
from costl.training.launch import Launch
from costl.training.micro_batches import Plan, Split, deal, most_videos, outputs_in_shares, seed_of, sum_gradients
from costl.training.objective import total_loss
from costl.training.state import fresh_state

CPU = torch.device("cpu")
STILL = ["model.dropout=0.0", "model.input_dropout=0.0"]
SEEDING = threading.Lock()  # threads draw from one generator
KINDS = {
    "two steps": [],
    "frame tokens": ["spatial.steps=0"],
    "cls": ["model.kind=cls"],
    "adapter": ["model.kind=adapter"],
    "no contrast, a plain yes": ["loss.contrast=0", "loss.quality=0"],
}


class Together:
    """Processes played by threads: what each says is put together when all have said it."""

    def __init__(self, count: int):
        self._said: list = [None] * count
        self._barrier = threading.Barrier(count, timeout=60)

    def all(self, rank: int, value: object) -> list:
        self._said[rank] = value
        self._barrier.wait()
        said = list(self._said)
        self._barrier.wait()
        return said

    def run(self, work: Callable[[Ranks], object]) -> list:
        """What `work` gives, or raises, in each of them."""
        found: list = [None] * len(self._said)

        def one(rank: int) -> None:
            try:
                found[rank] = work(ThreadRanks(Launch(rank, len(self._said)), self))
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(self._said))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class ThreadRanks(Ranks):
    """Ranks that meet in `tensors`, a Together."""

    def gather(self, value):
        return [copy.deepcopy(said) for said in self.tensors.all(self.rank, value)]  # as if it came from elsewhere

    def total(self, tensor):
        return tensor.copy_(torch.stack(self.gather(tensor.clone())).sum(0))


@pytest.fixture(scope="module")
def features(world) -> CacheReader:
    return CacheReader(world.cache)


@pytest.fixture(scope="module")
def queries(features) -> list[Query]:
    return parse_jsonl(features.annotations("train"), "train")


def some_of_each_video(queries: list[Query], videos: int) -> list[Query]:
    """Five, four, three ... queries about each of the first so many videos."""
    vids = list(dict.fromkeys(query.vid for query in queries))[:videos]
    return [q for n, vid in enumerate(vids) for q in [query for query in queries if query.vid == vid][: 5 - n]]


def learned(
    features, queries, *changes: str, ranks: Ranks = ALONE, accumulate: int = 1, videos: int = 4, broken=None
) -> tuple[dict, dict]:
    """Losses and gradients (None where there is none) of a batch; `broken` are features to read it from instead."""
    plan = Plan(ranks.rank, ranks.count, accumulate)
    config = load_config(features.settings, overrides=[*STILL, *changes])
    with SEEDING:
        state = fresh_state(config, features, CPU)
    ranks.gather(None)  # nobody draws for a share while another still draws its first weights
    state.model.train()
    group = some_of_each_video(queries, videos)
    # The last sentence is put to the first video and the first one to the last: they lie in other shares than these.
    wrong = [(len(group) - 1, 0), (0, len(group) - 1)] if videos > 1 else []
    batch = plan.collate(group, broken or features, patches=config.patches, wrong=wrong)
    if isinstance(batch, Split):
        outputs = outputs_in_shares(state.model, batch, ranks, draws=(0, 0), contrast=config.loss.contrast > 0)
        total, parts = total_loss(outputs, batch.whole, config.loss)
    else:
        total, parts = total_loss(state.model(**batch.model_inputs()), batch, config.loss)
    total.backward()
    sum_gradients(state.model, ranks)
    gradients = {name: weight.grad for name, weight in state.model.named_parameters()}
    return {name: value.item() for name, value in parts.items()}, gradients


def assert_same(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert {name for name, g in found[1].items() if g is None} == {n for n, g in expected[1].items() if g is None}
    largest = max(g.abs().max() for g in expected[1].values() if g is not None)
    for name, gradient in expected[1].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5 * largest.item(), msg=name)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_shares_one_after_another_give_the_losses_and_the_gradient_of_the_batch(features, queries, kind):
    whole = learned(features, queries, *kind)
    assert_same(learned(features, queries, *kind, accumulate=3), whole)


@pytest.mark.parametrize(("processes", "accumulate", "videos"), [(2, 1, 4), (3, 2, 4), (3, 1, 1)])
def test_processes_give_them_too_however_uneven_their_shares_and_though_some_are_empty(
    features, queries, processes, accumulate, videos
):
    whole = learned(features, queries, videos=videos)
    for found in Together(processes).run(
        lambda ranks: learned(features, queries, ranks=ranks, accumulate=accumulate, videos=videos)
    ):
        if isinstance(found, Exception):
            raise found
        assert_same(found, whole)


def test_what_one_process_cannot_read_all_of_them_say_and_the_first_aloud(features, queries):
    def work(ranks: Ranks) -> object:
        return learned(features, queries, ranks=ranks, broken=Damaged(features) if ranks.rank == 1 else None)

    errors = Together(2).run(work)
    assert [str(error) for error in errors] == ["process 1 of 2: part 7 is damaged."] * 2
    assert [type(error) for error in errors] == [CacheError] * 2
    assert [error.told for error in errors] == [False, True]


class Damaged:
    """Features whose tokens cannot be read."""

    def __init__(self, features: CacheReader):
        self._features = features

    def __getattr__(self, name: str) -> object:
        return getattr(self._features, name)

    def tokens(self, *_: object, **__: object) -> None:
        raise CacheError("part 7 is damaged.")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_other_sentences_are_matched_as_the_model_matches_its_own(features, queries, kind):
    config = load_config(features.settings, overrides=kind)
    model = fresh_state(config, features, CPU).model.eval()
    batch = Plan().collate(queries[:20:4], features, patches=config.patches)
    with rivals_of(model) as rivals:
        expected = model(**batch.model_inputs()).match.rivals
        found = rivals(batch.words, batch.word_mask, batch.sentence)
    assert len(found) == ways(model)
    torch.testing.assert_close(found, expected)
    assert expected.std() > 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=12), st.integers(1, 6))
def test_every_video_is_dealt_to_one_share_and_shares_are_about_even(sentences, shares):
    dealt = deal(sentences, shares)
    assert sorted(v for share in dealt for v in share) == list(range(len(sentences)))
    loads = [sum(sentences[v] for v in share) for share in dealt]
    assert max(loads) - min(loads) <= max(sentences)
    assert dealt == [sorted(share) for share in dealt] and len(dealt) == shares
    assert all(dealt[: min(shares, len(sentences))])  # none is empty while another one could be divided


class Bare:
    """Features of any video and sentence, of the least size."""

    fps, patch_grid, joint = 1.0, (0, 0), None

    def grid(self, video_id: str) -> Grid:
        return Grid(1.0, 1.0)

    def tokens(self, video_id: str, *, clips: object = None, patches: bool = True) -> np.ndarray:
        return np.zeros((1, 1, 2), np.float16)

    def words(self, query: str) -> Words:
        return Words(np.zeros((1, 2), np.float16), np.array([1.0, 0.0], np.float32))


def videos_together(counts: tuple[int, ...] | list[int], size: int, seed: int) -> int:
    """The most videos in a batch of an epoch, where so many queries ask about each video."""
    queries = [Query(f"{v}-{i}", "a", f"v{v}", 10.0) for v, count in enumerate(counts) for i in range(count)]
    shuffle = torch.Generator().manual_seed(seed)
    given = {"batch_size": size, "patches": False, "wrong": False, "generator": shuffle}
    most = max(len(batch.frame_mask) for batch in training_batches(queries, Bare(), **given))
    assert most <= most_videos(queries, size)
    return most


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 24), st.integers(0, 5))
def test_no_batch_has_more_videos_than_are_said_to_fit(counts, size, seed):
    assert videos_together(counts, size, seed) >= 1


def test_as_many_videos_as_are_said_to_fit_do_meet_in_some_batch():
    queries = [Query(f"{v}-{i}", "a", f"v{v}", 10.0) for v, count in enumerate((1, 2, 9)) for i in range(count)]
    assert max(videos_together((1, 2, 9), 4, seed) for seed in range(30)) == most_videos(queries, 4) == 3


def test_more_shares_than_a_batch_has_videos_are_refused_before_there_is_a_run(world, tmp_path):
    with pytest.raises(UsageError, match=r"train\.accumulate is 3, more shares .*at most 2 of the training videos"):
        train(world.cache, overrides=["train.accumulate=3"], out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_more_processes_than_that_are_told_how_many_to_start(queries):
    plan = Plan(count=4)
    with pytest.raises(UsageError, match=r"4 processes are more .*Start at most 2 \(torchrun --nproc_per_node=2\)"):
        plan.refuse_too_many(queries, batch_size=6)
    plan.refuse_too_many(queries, batch_size=32)


def test_dropout_draws_by_seed_step_and_share_alone():
    drawn = {seed_of(seed, step, share) for seed in range(4) for step in range(4) for share in range(4)}
    assert len(drawn) == 64 and seed_of(1, 2, 3) == seed_of(1, 2, 3)


def test_with_dropout_the_draws_on_the_way_back_are_those_of_the_way_there(features, queries):
    """Shares made again with other draws would give the gradient of another loss; by differences it is this one's."""
    still = "loss.quality=0"  # what focal asks for would move with the weight
    config = load_config(features.settings, overrides=["model.dropout=0.5", still])
    state = fresh_state(config, features, CPU)
    state.model.train()
    split = Plan(accumulate=2).collate(queries[::6], features, patches=True)
    assert isinstance(split, Split) and len(split.shares) == 2

    def loss() -> torch.Tensor:
        outputs = outputs_in_shares(state.model, split, ALONE, draws=(0, 5), contrast=True)
        return total_loss(outputs, split.whole, config.loss)[0]

    loss().backward()
    weight = state.model.pyramid.local[0].mix[1].weight
    moved, slopes = 3e-3, []
    with torch.no_grad():
        for sign in (1, -1):
            weight += sign * moved * weight.grad.sign()
            slopes.append(loss().item())
            weight -= sign * moved * weight.grad.sign()
    slope = (slopes[0] - slopes[1]) / (2 * moved)
    assert slope == pytest.approx(weight.grad.abs().sum().item(), rel=0.02)

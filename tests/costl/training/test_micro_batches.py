"""Micro-batches give the loss and the gradient of the whole batch, in one process and in several."""

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
from costl.data.sampler import training_batches
from costl.model.cross_batch_contrast import cross_batch_negatives, similarity_heads
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.grid import Grid
from costl.train import train
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.launch import Launch
from costl.training.micro_batches import (
    MicroBatchPlan,
    SplitBatch,
    assign_videos,
    dropout_seed,
    forward_micro_batches,
    max_videos_per_batch,
    sum_gradients,
)
from costl.training.objective import total_loss
from costl.training.state import fresh_state

CPU = torch.device("cpu")
NO_DROPOUT = ["model.dropout=0.0", "model.input_dropout=0.0"]
SEEDING = threading.Lock()  # the threads share one random generator
KINDS = {
    "two steps": [],
    "frame tokens": ["spatial.steps=0"],
    "cls": ["model.kind=cls"],
    "adapter": ["model.kind=adapter"],
    "no contrast, a plain yes": ["loss.contrast=0", "loss.quality=0"],
}


class ThreadGroup:
    """A process group of threads."""

    def __init__(self, world_size: int):
        self._values: list = [None] * world_size
        self._barrier = threading.Barrier(world_size, timeout=60)

    def all_gather(self, rank: int, value: object) -> list:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def run(self, work: Callable[[Ranks], object]) -> list:
        """The result of `work` in each thread, or the exception that it raised."""
        results: list = [None] * len(self._values)

        def run_rank(rank: int) -> None:
            try:
                results[rank] = work(ThreadRanks(Launch(rank, len(self._values)), self))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(len(self._values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class ThreadRanks(Ranks):
    """The ranks of a ThreadGroup, which is in `tensors`."""

    def all_gather(self, value):
        # Copies, as if the values came from other processes.
        return [copy.deepcopy(other) for other in self.tensors.all_gather(self.rank, value)]

    def all_reduce(self, tensor):
        return tensor.copy_(torch.stack(self.all_gather(tensor.clone())).sum(0))


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


def losses_and_gradients(
    features, queries, *changes: str, ranks: Ranks = SINGLE_PROCESS, accumulate: int = 1, videos: int = 4, broken=None
) -> tuple[dict, dict]:
    """Losses and gradients (None where there is none) of a batch; `broken` are other features to read it from."""
    plan = MicroBatchPlan(ranks.rank, ranks.world_size, accumulate)
    config = load_config(features.settings, overrides=[*NO_DROPOUT, *changes])
    with SEEDING:
        state = fresh_state(config, features, CPU)
    ranks.all_gather(None)  # no thread draws dropout while another one draws its initial weights
    state.model.train()
    group = some_of_each_video(queries, videos)
    # The last query with the first video, and the first query with the last: their videos are in other micro-batches.
    negative_pairs = [(len(group) - 1, 0), (0, len(group) - 1)] if videos > 1 else []
    batch = plan.collate(group, broken or features, patches=config.patches, negative_pairs=negative_pairs)
    if isinstance(batch, SplitBatch):
        outputs = forward_micro_batches(state.model, batch, ranks, draws=(0, 0), contrast=config.loss.contrast > 0)
        loss, losses = total_loss(outputs, batch.full_batch, config.loss)
    else:
        loss, losses = total_loss(state.model(**batch.model_inputs()), batch, config.loss)
    loss.backward()
    sum_gradients(state.model, ranks)
    gradients = {name: weight.grad for name, weight in state.model.named_parameters()}
    return {name: value.item() for name, value in losses.items()}, gradients


def assert_same(actual: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    losses, gradients = actual
    expected_losses, expected_gradients = expected
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert without_gradient(gradients) == without_gradient(expected_gradients)
    largest = max(g.abs().max() for g in expected_gradients.values() if g is not None)
    for name, gradient in expected_gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5 * largest.item(), msg=name)


def without_gradient(gradients: dict) -> set[str]:
    return {name for name, gradient in gradients.items() if gradient is None}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_accumulated_micro_batches_give_the_gradient_of_the_batch(features, queries, kind):
    whole = losses_and_gradients(features, queries, *kind)
    assert_same(losses_and_gradients(features, queries, *kind, accumulate=3), whole)


@pytest.mark.parametrize(("processes", "accumulate", "videos"), [(2, 1, 4), (3, 2, 4), (3, 1, 1)])
def test_processes_give_the_gradient_of_the_batch_also_when_some_are_idle(
    features, queries, processes, accumulate, videos
):
    whole = losses_and_gradients(features, queries, videos=videos)
    results = ThreadGroup(processes).run(
        lambda ranks: losses_and_gradients(features, queries, ranks=ranks, accumulate=accumulate, videos=videos)
    )
    for result in results:
        if isinstance(result, Exception):
            raise result
        assert_same(result, whole)


def test_all_processes_raise_a_read_error_and_the_main_one_prints_it(features, queries):
    def work(ranks: Ranks) -> object:
        return losses_and_gradients(
            features, queries, ranks=ranks, broken=Damaged(features) if ranks.rank == 1 else None
        )

    errors = ThreadGroup(2).run(work)
    assert [str(error) for error in errors] == ["process 1 of 2: part 7 is damaged."] * 2
    assert [type(error) for error in errors] == [CacheError] * 2
    assert [error.reported for error in errors] == [False, True]


class Damaged:
    """Features whose tokens cannot be read."""

    def __init__(self, features: CacheReader):
        self._features = features

    def __getattr__(self, name: str) -> object:
        return getattr(self._features, name)

    def tokens(self, *_: object, **__: object) -> None:
        raise CacheError("part 7 is damaged.")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_cross_batch_negatives_are_those_of_the_model(features, queries, kind):
    config = load_config(features.settings, overrides=kind)
    model = fresh_state(config, features, CPU).model.eval()
    batch = MicroBatchPlan().collate(queries[:20:4], features, patches=config.patches)
    with cross_batch_negatives(model) as negatives_of:
        expected = model(**batch.model_inputs()).similarities.negatives
        negatives = negatives_of(batch.words, batch.word_mask, batch.sentence)
    assert len(negatives) == similarity_heads(model)
    torch.testing.assert_close(negatives, expected)
    assert expected.std() > 0


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=12), st.integers(1, 6))
def test_every_video_is_in_one_of_about_even_micro_batches(queries_per_video, micro_batches):
    assigned = assign_videos(queries_per_video, micro_batches)
    assert sorted(v for videos in assigned for v in videos) == list(range(len(queries_per_video)))
    loads = [sum(queries_per_video[v] for v in videos) for videos in assigned]
    assert max(loads) - min(loads) <= max(queries_per_video)
    assert assigned == [sorted(videos) for videos in assigned] and len(assigned) == micro_batches
    assert all(assigned[: min(micro_batches, len(queries_per_video))])  # none is empty while another could be divided


class MinimalFeatures:
    """The smallest features, for any video and sentence."""

    fps, patch_grid, joint = 1.0, (0, 0), None

    def grid(self, video_id: str) -> Grid:
        return Grid(1.0, 1.0)

    def tokens(self, video_id: str, *, clips: object = None, patches: bool = True) -> np.ndarray:
        return np.zeros((1, 1, 2), np.float16)

    def words(self, query: str) -> SentenceTokens:
        return SentenceTokens(np.zeros((1, 2), np.float16), np.array([1.0, 0.0], np.float32))


def videos_together(counts: tuple[int, ...] | list[int], size: int, seed: int) -> int:
    """The most videos in a batch of an epoch, for so many queries about each video."""
    queries = [Query(f"{v}-{i}", "a", f"v{v}", 10.0) for v, count in enumerate(counts) for i in range(count)]
    shuffle = torch.Generator().manual_seed(seed)
    options = {"batch_size": size, "patches": False, "negative_pairs": False, "generator": shuffle}
    most = max(len(batch.frame_mask) for batch in training_batches(queries, MinimalFeatures(), **options))
    assert most <= max_videos_per_batch(queries, size)
    return most


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 24), st.integers(0, 5))
def test_no_batch_has_more_than_the_maximum_of_videos(counts, size, seed):
    assert videos_together(counts, size, seed) >= 1


def test_some_batch_has_the_maximum_of_videos():
    queries = [Query(f"{v}-{i}", "a", f"v{v}", 10.0) for v, count in enumerate((1, 2, 9)) for i in range(count)]
    assert max(videos_together((1, 2, 9), 4, seed) for seed in range(30)) == max_videos_per_batch(queries, 4) == 3


def test_more_micro_batches_than_videos_are_refused_before_training(world, tmp_path):
    with pytest.raises(
        UsageError, match=r"train\.accumulate is 3, more micro-batches .*at most 2 of the training videos"
    ):
        train(world.cache, overrides=["train.accumulate=3"], out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_error_for_too_many_processes_names_the_maximum(queries):
    plan = MicroBatchPlan(world_size=4)
    with pytest.raises(UsageError, match=r"4 processes are more .*Start at most 2 \(torchrun --nproc_per_node=2\)"):
        plan.refuse_too_many(queries, batch_size=6)
    plan.refuse_too_many(queries, batch_size=32)


def test_dropout_depends_on_the_seed_the_step_and_the_micro_batch():
    seeds = {dropout_seed(seed, step, number) for seed in range(4) for step in range(4) for number in range(4)}
    assert len(seeds) == 64 and dropout_seed(1, 2, 3) == dropout_seed(1, 2, 3)


def test_recomputing_a_micro_batch_repeats_its_dropout(features, queries):
    """With other masks the backward pass would give the gradient of another loss than finite differences do."""
    fixed_target = "loss.quality=0"  # the IoU target of the focal loss would change with the weight
    config = load_config(features.settings, overrides=["model.dropout=0.5", fixed_target])
    state = fresh_state(config, features, CPU)
    state.model.train()
    batch = MicroBatchPlan(accumulate=2).collate(queries[::6], features, patches=True)
    assert isinstance(batch, SplitBatch) and len(batch.micro_batches) == 2

    def loss() -> torch.Tensor:
        outputs = forward_micro_batches(state.model, batch, SINGLE_PROCESS, draws=(0, 5), contrast=True)
        return total_loss(outputs, batch.full_batch, config.loss)[0]

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

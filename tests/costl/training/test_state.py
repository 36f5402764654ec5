"""What training carries from step to step and to disk: the means of the losses are over the batches that have them."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from costl import train as module
from costl.config import load_config
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint, save_checkpoint
from costl.training.logging import Pacer
from costl.training.state import Midway, fresh_state, load_state, save_state

WEIGHTS = {"focal": 2.0, "iou": 1.0, "saliency": 0.5}


def losses(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def epoch_with_one_bare_batch() -> Midway:
    """Nine batches with moments, one without any, one more with moments."""
    midway = Midway()
    for focal in [1.0] * 9 + [None, 1.0]:
        midway.add(losses(saliency=3.0) | ({} if focal is None else losses(focal=focal, iou=0.5)))
    return midway


def state_of(world, *overrides: str):
    features = CacheReader(world.cache)
    return fresh_state(load_config(features.settings, overrides=overrides), features, torch.device("cpu"))


def test_a_batch_without_moments_leaves_the_sums_of_the_others():
    midway = epoch_with_one_bare_batch()
    assert midway.batches == 11
    assert midway.means() == {"saliency": 3.0, "focal": 1.0, "iou": 0.5}
    assert midway.mean(WEIGHTS) == 2.0 * 1.0 + 1.0 * 0.5 + 0.5 * 3.0


def test_the_progress_line_shows_the_mean_of_the_batches_that_count(world):
    state, lines = state_of(world), []
    state.midway = epoch_with_one_bare_batch()
    pacer = Pacer(lines.append, state, weights=WEIGHTS, epochs=1, queries=12)
    pacer("", 11)
    assert [line.flow.loss for line in lines] == [4.0]


def test_an_epoch_without_a_batch_has_no_loss_yet():
    assert Midway().mean(WEIGHTS) == 0.0 and Midway().means() == {}


@pytest.mark.parametrize("bare", [1, 6, 12])
def test_the_row_of_an_epoch_holds_the_mean_over_its_batches(world, tmp_path, bare, monkeypatch):
    """Batch number `bare` of the twelve has no moments."""
    focal: list[float] = []
    real, calls = module.total_loss, []

    def without_moments(outputs, batch, weights):
        calls.append(batch)
        total, parts = real(outputs, batch, weights)
        if len(calls) == bare:
            return total, {name: value for name, value in parts.items() if name not in ("focal", "iou")}
        focal.append(float(parts["focal"].detach()))
        return total, parts

    monkeypatch.setattr(module, "total_loss", without_moments)
    train(world.cache, overrides=["train.epochs=1"], out=tmp_path / "run", device="cpu")
    assert len(calls) == len(focal) + 1 == 12
    assert losses_of(tmp_path / "run")["focal"] == pytest.approx(sum(focal) / len(focal), rel=1e-5)


def test_the_sums_and_counts_of_an_epoch_survive_the_disk(world, tmp_path):
    saved, loaded = state_of(world), state_of(world)
    saved.midway = epoch_with_one_bare_batch()
    save_state(saved, tmp_path)
    load_state(loaded, tmp_path)
    assert loaded.midway == saved.midway
    loaded.midway.add(losses(focal=12.0))
    assert loaded.midway.means() == {"saliency": 3.0, "focal": 2.0, "iou": 0.5}


def rewrite_midway(folder, change) -> None:
    """Changes what a saved state says about its epoch."""
    weights, meta = load_checkpoint(folder, "last")
    save_checkpoint(folder, "last", weights, meta | {"midway": change(meta["midway"])})


def without_counts(midway: dict) -> dict:
    return {name: value for name, value in midway.items() if name != "counts"}


def test_a_checkpoint_of_before_the_counts_keeps_its_means(world, tmp_path):
    saved, loaded = state_of(world), state_of(world)
    for _ in range(4):
        saved.midway.add(losses(focal=2.0, saliency=1.0))
    save_state(saved, tmp_path)
    rewrite_midway(tmp_path, without_counts)
    load_state(loaded, tmp_path)
    assert loaded.midway == saved.midway and loaded.midway.counts == {"focal": 4, "saliency": 4}


def train_until(world, folder, stop: int | None) -> None:
    """One epoch of twelve batches; Ctrl-C in the step number `stop`."""
    real, calls = module.total_loss, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "total_loss", interrupted)
        train(world.cache, overrides=["train.epochs=1"], out=folder, device="cpu")


def losses_of(folder) -> dict[str, float]:
    (row,) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return row["losses"]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> dict[str, float]:
    """The losses of an epoch that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_until(world, folder, None)
    return losses_of(folder)


@pytest.mark.parametrize("counted", [True, False])
def test_a_stopped_run_resumes_with_or_without_counts(world, whole, tmp_path, counted):
    with pytest.raises(KeyboardInterrupt):
        train_until(world, tmp_path / "run", 6)
    if not counted:
        rewrite_midway(tmp_path / "run", without_counts)
    _, meta = load_checkpoint(tmp_path / "run", "last")
    assert meta["midway"]["batches"] == 5 and ("counts" in meta["midway"]) == counted
    resume(tmp_path / "run", device="cpu")
    assert losses_of(tmp_path / "run") == whole


@pytest.mark.parametrize("counts", [{}, {"focal": 0, "iou": 1, "saliency": 1}, {"focal": "many"}, [1], None])
def test_counts_that_do_not_belong_to_the_losses_are_refused(world, tmp_path, counts):
    state = state_of(world)
    state.midway = epoch_with_one_bare_batch()
    save_state(state, tmp_path)
    rewrite_midway(tmp_path, lambda midway: midway | {"counts": counts})
    with pytest.raises(CacheError, match="cannot be continued"):
        load_state(state_of(world), tmp_path)


def test_every_field_of_the_epoch_is_saved():
    assert asdict(Midway()).keys() == {"batches", "sums", "counts", "seconds", "waited_s"}

"""The training state: the means of losses over the batches that have them, saved and loaded again."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from costl.config import load_config
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.train import resume, train
from costl.training import objective
from costl.training.checkpoint import load_checkpoint, save_checkpoint
from costl.training.logging import ProgressReporter
from costl.training.state import EpochProgress, fresh_state, load_state, save_state

WEIGHTS = {"focal": 2.0, "iou": 1.0, "saliency": 0.5}


def losses(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def epoch_with_one_batch_without_moments() -> EpochProgress:
    """Nine batches with moments, one without any, one more with moments."""
    progress = EpochProgress()
    for focal in [1.0] * 9 + [None, 1.0]:
        progress.add(losses(saliency=3.0) | ({} if focal is None else losses(focal=focal, iou=0.5)))
    return progress


def state_of(world, *overrides: str):
    features = CacheReader(world.cache)
    return fresh_state(load_config(features.settings, overrides=overrides), features, torch.device("cpu"))


def test_a_batch_without_moments_does_not_change_other_means():
    progress = epoch_with_one_batch_without_moments()
    assert progress.batches == 11
    assert progress.means() == {"saliency": 3.0, "focal": 1.0, "iou": 0.5}
    assert progress.mean(WEIGHTS) == 2.0 * 1.0 + 1.0 * 0.5 + 0.5 * 3.0


def test_the_progress_line_shows_the_mean_over_batches_with_a_loss(world):
    state = state_of(world)
    updates = []
    state.epoch_progress = epoch_with_one_batch_without_moments()
    reporter = ProgressReporter(updates.append, state, loss_weights=WEIGHTS, epochs=1, queries=12)
    reporter("", 11)
    assert [update.speed.loss for update in updates] == [4.0]


def test_an_epoch_without_a_batch_has_no_loss_yet():
    assert EpochProgress().mean(WEIGHTS) == 0.0 and EpochProgress().means() == {}


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_row_of_an_epoch_holds_the_mean_over_its_batches(world, tmp_path, number, monkeypatch):
    """Batch `number` of the four has no moments."""
    focal: list[float] = []
    real, calls = objective.total_loss, []

    def without_moments(outputs, batch, weights):
        calls.append(batch)
        total, parts = real(outputs, batch, weights)
        if len(calls) == number:
            return total, {name: value for name, value in parts.items() if name not in ("focal", "iou")}
        focal.append(float(parts["focal"].detach()))
        return total, parts

    monkeypatch.setattr(objective, "total_loss", without_moments)
    train(world.cache, overrides=["train.epochs=1", "train.batch_size=6"], out=tmp_path / "run", device="cpu")
    assert len(calls) == len(focal) + 1 == 4
    assert losses_of(tmp_path / "run")["focal"] == pytest.approx(sum(focal) / len(focal), rel=1e-5)


def test_the_sums_and_counts_of_an_epoch_are_saved_and_loaded(world, tmp_path):
    saved = state_of(world)
    loaded = state_of(world)
    saved.epoch_progress = epoch_with_one_batch_without_moments()
    save_state(saved, tmp_path)
    load_state(loaded, tmp_path)
    assert loaded.epoch_progress == saved.epoch_progress
    loaded.epoch_progress.add(losses(focal=12.0))
    assert loaded.epoch_progress.means() == {"saliency": 3.0, "focal": 2.0, "iou": 0.5}


def rewrite_epoch_progress(folder, change) -> None:
    """Changes the progress of the epoch in a saved state, whose key is "midway"."""
    weights, meta = load_checkpoint(folder, "last")
    save_checkpoint(folder, "last", weights, meta | {"midway": change(meta["midway"])})


def without_counts(saved: dict) -> dict:
    return {name: value for name, value in saved.items() if name != "counts"}


def test_a_checkpoint_without_counts_keeps_its_means(world, tmp_path):
    saved = state_of(world)
    loaded = state_of(world)
    for _ in range(4):
        saved.epoch_progress.add(losses(focal=2.0, saliency=1.0))
    save_state(saved, tmp_path)
    rewrite_epoch_progress(tmp_path, without_counts)
    load_state(loaded, tmp_path)
    assert loaded.epoch_progress == saved.epoch_progress and loaded.epoch_progress.counts == {"focal": 4, "saliency": 4}


def train_until(world, folder, stop: int | None) -> None:
    """One epoch of four batches, with Ctrl-C in step `stop`."""
    real, calls = objective.total_loss, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "total_loss", interrupted)
        train(world.cache, overrides=["train.epochs=1", "train.batch_size=6"], out=folder, device="cpu")


def losses_of(folder) -> dict[str, float]:
    (row,) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return row["losses"]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> dict[str, float]:
    """The losses of an uninterrupted epoch."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_until(world, folder, None)
    return losses_of(folder)


@pytest.mark.parametrize("with_counts", [True, False])
def test_a_stopped_run_resumes_with_or_without_counts(world, whole, tmp_path, with_counts):
    with pytest.raises(KeyboardInterrupt):
        train_until(world, tmp_path / "run", 3)
    if not with_counts:
        rewrite_epoch_progress(tmp_path / "run", without_counts)
    _, meta = load_checkpoint(tmp_path / "run", "last")
    assert meta["midway"]["batches"] == 2 and ("counts" in meta["midway"]) == with_counts
    resume(tmp_path / "run", device="cpu")
    assert losses_of(tmp_path / "run") == whole


@pytest.mark.parametrize("counts", [{}, {"focal": 0, "iou": 1, "saliency": 1}, {"focal": "many"}, [1], None])
def test_counts_that_do_not_match_the_losses_are_refused(world, tmp_path, counts):
    state = state_of(world)
    state.epoch_progress = epoch_with_one_batch_without_moments()
    save_state(state, tmp_path)
    rewrite_epoch_progress(tmp_path, lambda saved: saved | {"counts": counts})
    with pytest.raises(CacheError, match="cannot be continued"):
        load_state(state_of(world), tmp_path)


def test_every_field_of_the_epoch_is_saved():
    assert asdict(EpochProgress()).keys() == {"batches", "sums", "counts", "seconds", "waited_s"}

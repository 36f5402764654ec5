"""The state of a training: created, averaged (EMA), saved to `last.safetensors` and loaded again to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costl.ask.hub import HUB
from costl.config import Config
from costl.model.build import Model, build_model, cache_sizes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.training.checkpoint import (
    load_checkpoint,
    load_matching_weights,
    rng_state,
    save_checkpoint,
    set_rng_state,
    weights_digest,
)
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.optimizer import make_optimizer
from costl.training.precision import choose_precision, make_scaler


@dataclass
class EpochProgress:
    """How far the current epoch has come.

    `batches` are done. `sums` has the sum of each loss and `counts` the number of batches that have this loss: a batch
    without any moment has no loss about moments. The batches took `seconds`, of which `waited_s` were spent waiting for
    data. `last.safetensors` stores the fields under these names.
    """

    batches: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    waited_s: float = 0.0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds one batch with its losses."""
        self.batches += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """The mean of each loss over the batches that have it."""
        return {name: float(value) / self.counts[name] for name, value in self.sums.items()}

    def mean(self, weights: Mapping[str, float]) -> float:
        """The weighted sum of these means. Reads from the device only once."""
        return float(sum(weights[name] * value / self.counts[name] for name, value in self.sums.items()))


@dataclass
class TrainingState:
    """Everything that changes during training. `last.safetensors` holds all of it except `ranks`.

    `ema_model` is the exponential moving average of `model`. `shuffle_generator` is in the state from which the order of
    the current epoch was drawn, so that resuming draws the same order again. `random_state` has the states of all other
    generators after the last complete step: an interruption in the middle of a step must not change them.
    """

    model: Model
    ema_model: Model
    optimizer: torch.optim.Optimizer
    shuffle_generator: torch.Generator
    precision: torch.dtype
    scaler: torch.amp.GradScaler
    random_state: Mapping[str, Any] = field(default_factory=rng_state)
    epoch_progress: EpochProgress = field(default_factory=EpochProgress)
    ranks: Ranks = SINGLE_PROCESS
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    seconds: float = 0.0

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def copy_shuffle_generator(self) -> torch.Generator:
        """A generator in the same state as `shuffle_generator`."""
        copied = torch.Generator()
        copied.set_state(self.shuffle_generator.get_state())
        return copied

    def end_epoch(self, shuffle_generator: torch.Generator, seconds: float) -> None:
        """Goes to the next epoch, whose order is drawn from `shuffle_generator`; this one took `seconds`."""
        self.epoch += 1
        self.shuffle_generator = shuffle_generator
        self.epoch_progress = EpochProgress()
        self.seconds += seconds
        self.random_state = rng_state()


# The number's key in the "counts" of last.safetensors -> the field of TrainingState.
COUNTS = {"epoch": "epoch", "step": "step", "best_epoch": "best_epoch", "best": "best_score", "seconds": "seconds"}


def fresh_state(config: Config, features: CacheReader, device: torch.device) -> TrainingState:
    """The state before the first step. `train.seed` decides everything random in it."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    return state_before_training(build_model(config, **cache_sizes(config, features)).to(device), config)


def state_before_training(model: Model, config: Config) -> TrainingState:
    """The state before the first step of this model, which is on its device."""
    optimizer = make_optimizer(model, config.train)
    ema_model = copy.deepcopy(model).requires_grad_(False)
    shuffle_generator = torch.Generator().manual_seed(config.train.seed)
    device = next(model.parameters()).device
    precision = choose_precision(config.train.precision, device)
    return TrainingState(model, ema_model, optimizer, shuffle_generator, precision, make_scaler(device, precision))


def load_start(state: TrainingState, start_from: Path | str | None) -> dict[str, str]:
    """Loads the weights of a trained model into a fresh state; returns the model and the digest of its weights.

    Nothing is loaded and returned without `start_from`. Raises UsageError when it is no model, CacheError when it is damaged
    or its weights do not fit.
    """
    if start_from is None:
        return {}
    from costl.ask.trained_model import read_trained_model

    trained = read_trained_model(start_from)
    for model in (state.model, state.ema_model):
        load_matching_weights(model, trained.weights, source=trained.name)
    return {"model": _stored_name(start_from), "sha256": weights_digest(trained.weights)}


def _stored_name(start_from: Path | str) -> str:
    """The name of a model, whatever folder a resumed run is started in."""
    return str(start_from) if str(start_from).startswith(HUB) else str(Path(start_from).resolve())


def save_if_best(state: TrainingState, score: float | None, folder: Path) -> None:
    """Saves the EMA weights as `best` if the score is the best so far; without a score, every epoch is the best so far.

    Of several processes only the main one saves.
    """
    is_best = score is None or state.best_score is None or score > state.best_score
    if is_best:
        state.best_score = score
        state.best_epoch = state.epoch
    if is_best and state.ranks.is_main:
        save_checkpoint(folder, "best", state.ema_model.state_dict(), {"epoch": state.epoch, "score": score})


def save_state(state: TrainingState, folder: Path) -> None:
    """Saves the state as `last`. The keys are those of the first version, so that every version reads every run."""
    meta = {
        "average": state.ema_model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "shuffle": state.shuffle_generator.get_state(),
        "random": state.random_state,
        "scaler": state.scaler.state_dict(),
        "midway": asdict(state.epoch_progress),
        "counts": {key: getattr(state, name) for key, name in COUNTS.items()},
    }
    save_checkpoint(folder, "last", state.model.state_dict(), meta)


def load_state(state: TrainingState, folder: Path) -> None:
    """Loads `last` into a fresh state. Raises CacheError when it is damaged or of another version."""
    weights, meta = load_checkpoint(folder, "last")
    try:
        load_matching_weights(state.model, weights, source=str(folder))
        load_matching_weights(state.ema_model, meta["average"], source=str(folder))
        _forget_other_weights(state.optimizer, state.model)
        state.optimizer.load_state_dict(meta["optimizer"])
        state.shuffle_generator.set_state(meta["shuffle"])
        set_rng_state(meta["random"])
        state.random_state = meta["random"]
        if meta["scaler"]:  # empty for a precision that needs no scaling
            state.scaler.load_state_dict(meta["scaler"])
        state.epoch_progress = _load_epoch_progress(meta["midway"], state.device)
        for key, name in COUNTS.items():
            setattr(state, name, _checked_count(meta["counts"][key], optional=key == "best"))
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise CacheError(f"{folder}: of another version of CoSTL, it cannot be continued. Train a new run.") from error


def _forget_other_weights(optimizer: torch.optim.Optimizer, model: Model) -> None:
    """Leaves the optimizer with the weights of this model: one of an earlier version has fewer parts."""
    kept = {id(weight) for weight in model.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) in kept]


def _load_epoch_progress(saved: Mapping[str, Any], device: torch.device) -> EpochProgress:
    """Earlier versions saved no counts and divided by the number of batches; their checkpoints are read in the same way."""
    old_counts = dict.fromkeys(saved["sums"], saved["batches"])
    progress = EpochProgress(**({"counts": old_counts} | dict(saved)))
    if progress.counts.keys() != progress.sums.keys() or not all(count > 0 for count in progress.counts.values()):
        raise ValueError(f"{progress.counts!r} are not the counts of these losses")
    progress.sums = {name: value.to(device) for name, value in progress.sums.items()}
    return progress


def _checked_count(value: object, *, optional: bool) -> object:
    if not (isinstance(value, int | float) and abs(value) < 1 << 62) and not (optional and value is None):
        raise ValueError(f"{value!r} is not a count")
    return value

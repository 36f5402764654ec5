"""All that changes while training: made fresh, averaged, and carried to disk and back to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from costl.config import Config
from costl.model.build import Model, build_for
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.training.checkpoint import (
    checkpoint_path,
    fit_weights,
    load_checkpoint,
    refuse_larger,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from costl.training.compiling import compile_layers
from costl.training.distributed import ALONE, Ranks
from costl.training.precision import choose_precision, make_scaler


@dataclass
class Midway:
    """How far the current epoch has come: its batches so far, the sum of each loss and the number of batches that have this
    loss, the seconds that the batches took, and how many of these were spent waiting for data.

    A batch without any moment has no loss about moments, so each loss has a count of its own.
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
        """The weighted sum of these means. The device is read only once."""
        return float(sum(weights[name] * value / self.counts[name] for name, value in self.sums.items()))


@dataclass
class State:
    """The model, its running average, and where training stands; all of it is in last.safetensors, but for the processes
    that do it (`ranks`).

    `shuffle` stands where the epoch in hand began, whose order is drawn from it anew by whoever continues; `random` is
    where everything else that draws stood after the last step, which an interruption in the middle of one must not change.
    """

    model: Model
    average: Model
    optimizer: torch.optim.Optimizer
    shuffle: torch.Generator
    precision: torch.dtype
    scaler: torch.amp.GradScaler
    random: Mapping[str, Any] = field(default_factory=rng_state)
    midway: Midway = field(default_factory=Midway)
    ranks: Ranks = ALONE
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best: float | None = None
    seconds: float = 0.0

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device


COUNTS = ("epoch", "step", "best_epoch", "best", "seconds")


def fresh_state(config: Config, features: CacheReader, device: torch.device) -> State:
    """Before the first step. Everything random in it comes from `train.seed`."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.train.seed)
    model = build_for(config, features).to(device)
    # Biases, norms and other single rows are not pulled towards zero: it would only shift what they are there to set.
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rows = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.train.weight_decay}, {"params": rows, "weight_decay": 0.0}],
        lr=config.train.learning_rate,
    )
    average = copy.deepcopy(model).requires_grad_(False)
    shuffle = torch.Generator().manual_seed(config.train.seed)
    precision = choose_precision(config.train.precision, device)
    if config.train.compile:
        compile_layers(model, device)
    return State(model, average, optimizer, shuffle, precision, make_scaler(device, precision))


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, *, memory: float) -> None:
    """average = memory * average + (1 - memory) * model. Buffers are constants here and need no averaging."""
    get_ema_multi_avg_fn(memory)(list(average.parameters()), list(model.parameters()), 0)


def keep_if_best(state: State, score: float | None, folder: Path) -> None:
    """Saves the average as `best` if its score is; without validation (no score) every epoch is the best so far.

    Of several processes the first saves.
    """
    better = score is None or state.best is None or score > state.best
    if better:
        state.best, state.best_epoch = score, state.epoch
    if better and state.ranks.first:
        save_checkpoint(folder, "best", state.average.state_dict(), {"epoch": state.epoch, "score": score})


def save_state(state: State, folder: Path) -> None:
    """Saves all of it as `last`."""
    meta = {
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "shuffle": state.shuffle.get_state(),
        "random": state.random,
        "scaler": state.scaler.state_dict(),
        "midway": asdict(state.midway),
        "counts": {name: getattr(state, name) for name in COUNTS},
    }
    save_checkpoint(folder, "last", state.model.state_dict(), meta)


def refuse_larger_than_state(config: Config, folder: Path) -> None:
    """Raises CacheError when `last` is damaged, or of a smaller model than these settings would build."""
    if checkpoint_path(folder, "last").exists():
        refuse_larger(config, load_checkpoint(folder, "last")[0], str(folder))


def load_state(state: State, folder: Path) -> None:
    """Puts `last` into a fresh state. Raises CacheError when it is damaged or of another version."""
    weights, meta = load_checkpoint(folder, "last")
    try:
        fit_weights(state.model, weights, of=str(folder))
        fit_weights(state.average, meta["average"], of=str(folder))
        state.optimizer.load_state_dict(meta["optimizer"])
        state.shuffle.set_state(meta["shuffle"])
        set_rng_state(meta["random"])
        state.random = meta["random"]
        if meta["scaler"]:  # nothing where the precision needs none
            state.scaler.load_state_dict(meta["scaler"])
        state.midway = _load_midway(meta["midway"], state.device)
        for name in COUNTS:
            setattr(state, name, _count(meta["counts"][name], optional=name == "best"))
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise CacheError(f"{folder}: of another version of CoSTL, it cannot be continued. Train a new run.") from error


def _load_midway(saved: Mapping[str, Any], device: torch.device) -> Midway:
    """Earlier versions saved no counts and divided by the number of batches; their checkpoints are read in the same way."""
    midway = Midway(**({"counts": dict.fromkeys(saved["sums"], saved["batches"])} | dict(saved)))
    if midway.counts.keys() != midway.sums.keys() or not all(count > 0 for count in midway.counts.values()):
        raise ValueError(f"{midway.counts!r} are no counts of these losses")
    midway.sums = {name: value.to(device) for name, value in midway.sums.items()}
    return midway


def _count(value: object, *, optional: bool) -> object:
    if not (isinstance(value, int | float) and abs(value) < 1 << 62) and not (optional and value is None):
        raise ValueError(f"{value!r} is no count")
    return value

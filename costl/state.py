"""All that changes while training: made fresh, averaged, and carried to disk and back to the last bit."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from costl.checkpoint import (
    checkpoint_path,
    fit_weights,
    load_checkpoint,
    refuse_larger,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from costl.config import Config
from costl.evaluate import build_for
from costl.model.build import Model
from costl.ranks import ALONE, Ranks
from pipeline.cache import CacheReader
from pipeline.errors import CacheError


@dataclass
class State:
    """The model, its running average, and where training stands; all of it is in last.safetensors, but for the processes
    that do it (`ranks`)."""

    model: Model
    average: Model
    optimizer: torch.optim.Optimizer
    shuffle: torch.Generator
    ranks: Ranks = ALONE
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best: float | None = None
    seconds: float = 0.0


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
    return State(model, average, optimizer, torch.Generator().manual_seed(config.train.seed))


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
        "random": rng_state(),
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
        for name in COUNTS:
            setattr(state, name, _count(meta["counts"][name], optional=name == "best"))
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise CacheError(f"{folder}: of another version of CoSTL, it cannot be continued. Train a new run.") from error


def _count(value: object, *, optional: bool) -> object:
    if not (isinstance(value, int | float) and abs(value) < 1 << 62) and not (optional and value is None):
        raise ValueError(f"{value!r} is no count")
    return value

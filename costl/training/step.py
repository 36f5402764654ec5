"""One step of training: forward, loss, backward, optimizer step, average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from costl.config import Config
from costl.data.batch import Batch
from costl.pipeline.errors import CostlError
from costl.training.checkpoint import rng_state
from costl.training.objective import Objective
from costl.training.optimizer import set_learning_rate
from costl.training.precision import may_overflow
from costl.training.signals import defer_signals
from costl.training.state import TrainingState


def make_objective(state: TrainingState, config: Config) -> nn.Module:
    """The loss of a batch as a module; of several processes, each has the gradient of the whole batch after backward()."""
    return state.ranks.data_parallel(Objective(state.model, config.loss, state.precision, state.ranks))


def train_step(
    state: TrainingState, objective: nn.Module, batch: Batch, config: Config, *, progress: float = 0.0
) -> None:
    """Trains on one batch; `progress` is the fraction of training that is done, which decides the learning rate.

    Raises CostlError when loss or gradient are not finite, or when the memory of a GPU is full.
    A step whose gradient overflows float16 is skipped, and the loss scale is reduced for the next one.
    """
    batch = batch.to(state.device)
    if batch.share is not None:
        torch.manual_seed(dropout_seed(config.train.seed, state.step, state.ranks.rank))
    set_learning_rate(state.optimizer, config.train, step=state.step, progress=progress)
    with state.ranks.translate_errors(), _explained_memory(state, batch):
        loss, losses = objective(batch)
        state.optimizer.zero_grad()
        state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm)
    finite = bool((loss + norm).isfinite())
    if not finite and not (loss.isfinite() and may_overflow(state.scaler)):
        raise _non_finite_error(state, batch, losses)
    with defer_signals():
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if finite:
            state.step += 1
            # A shorter memory at first: the average would remember the random initial weights for too long.
            decay = min(config.train.ema, (1 + state.step) / (10 + state.step))
            update_ema(state.ema_model, state.model, decay=decay)
        state.epoch_progress.add(losses)
        state.random_state = rng_state()


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, *, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * model, for every parameter. Buffers are constants here and stay as they are."""
    get_ema_multi_avg_fn(decay)(list(ema_model.parameters()), list(model.parameters()), 0)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """The seed for dropout in one step of one process: a resumed run with as many processes draws the same again."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


@contextmanager
def _explained_memory(state: TrainingState, batch: Batch) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CostlError(
            f"Epoch {state.epoch + 1}, step {state.step + 1}: the memory of {state.device} is full, with a batch of "
            f"{len(batch.queries)} queries about {len(batch.frame_mask)} videos. The epoch before is kept. Train with a "
            "smaller train.batch_size, or free some memory."
        ) from error


def _non_finite_error(state: TrainingState, batch: Batch, losses: dict[str, Tensor]) -> CostlError:
    non_finite = [name for name, value in losses.items() if not value.isfinite()] or ["the gradient"]
    qids = ", ".join(str(query.qid) for query in batch.queries)
    float32 = ", or train.precision=float32: the range of float16 is small" if state.scaler.is_enabled() else ""
    error = CostlError(
        f"Epoch {state.epoch + 1}, step {state.step + 1}: {', '.join(non_finite)} is not a finite number, in the batch of "
        f"queries {qids}. The epoch before is kept. Check these videos, or train with a smaller "
        f"train.learning_rate{float32}."
    )
    error.reported = not state.ranks.is_main  # loss and gradient are the same in all processes
    return error

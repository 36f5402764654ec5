"""The number of times that the host waits for the device in a training step, counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from device_waits import CUDA, Waits, fake_gpu_tensor, move_to_fake_gpu
from small_model import NEGATIVE_PAIRS, SMALL, Sprites, untrained
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from costl.config import KINDS, Config, load_config
from costl.data.batch import Batch, collate
from costl.model.build import Model
from costl.training.objective import Objective
from costl.training.state import TrainingState, state_before_training
from costl.training.step import make_objective, train_step, update_ema

CPU = torch.device("cpu")
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
X, MASK = torch.arange(6.0), torch.arange(6) % 2 == 0
WAITS: dict[str, Callable[[], object]] = {
    "a number is read": lambda: X.sum().item(),
    "a condition is read": lambda: bool(MASK.any()),
    "nonzero": lambda: MASK.nonzero(),
    "a boolean index": lambda: X[MASK],
    "a boolean index is written to": lambda: X.clone().index_put_((MASK,), torch.tensor(0.0)),
    "masked_select": lambda: X.masked_select(MASK),
    "repeats of unknown number": lambda: X.repeat_interleave(MASK.int()),
    "unique": lambda: X.unique(),
    "one_hot on a CPU": lambda: nn.functional.one_hot(X.long(), 6),
}


@pytest.mark.parametrize("operation", WAITS.values(), ids=WAITS)
def test_the_counter_sees_an_operation_that_waits(operation):
    with Waits() as waits:
        operation()
    assert waits.count.total() >= 1


COPIES: dict[str, Callable[[Tensor], object]] = {
    "a new tensor of numbers": lambda x: x.new_tensor([1.0, 2.0]),
    "to the host": lambda x: x.cpu(),
    "to a device": lambda x: X.to(x.device),
}


@pytest.mark.parametrize("operation", COPIES.values(), ids=COPIES)
def test_the_counter_sees_a_copy_between_the_host_and_a_gpu(operation):
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = fake_gpu_tensor(X)
        with Waits() as waits:
            operation(on_gpu)
    assert waits.count.total() == 1


def test_the_counter_ignores_operations_that_do_not_wait():
    with Waits() as waits:
        X[MASK.long()].masked_fill(MASK, 0.0).repeat_interleave(2)
        X.repeat_interleave(MASK.long(), output_size=3)
        torch.where(MASK, X, 0.0).argsort(stable=True)
    assert not waits.count


# --- one step ----------------------------------------------------------------------------------------------------


def new_model(kind: str) -> tuple[Model, Config]:
    world = Sprites()
    config = load_config(SMALL, overrides=[f"model.kind={kind}"])
    model = untrained(config, world.patch_grid)
    return model.train(), config


def new_state(kind: str, precision: torch.dtype, device: torch.device = CPU) -> tuple[TrainingState, Config]:
    model, config = new_model(kind)
    dtype = str(precision).removeprefix("torch.")
    config = replace(config, train=replace(config.train, precision=dtype))
    return state_before_training(model.to(device), config), config


def new_batch(config: Config) -> Batch:
    """Three videos, each with two queries and a negative pair."""
    world = Sprites()
    return collate(world.queries, world, patches=config.patches, negative_pairs=NEGATIVE_PAIRS)


def step_counts(state: TrainingState) -> list[Tensor]:
    """The step counters of AdamW, tensors that stay on the host whatever the device of the weights, and that it reads."""
    return [weight_state["step"] for weight_state in state.optimizer.state.values()]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_the_device_once_or_in_float16_twice(kind, precision):
    """Once to check that loss and gradient are finite, before the weights change: the error names the step and its queries,
    and the checkpoint is that of the step before. In float16, GradScaler also reads whether a gradient overflowed."""
    state, config = new_state(kind, precision)
    batch = new_batch(config)
    objective = make_objective(state, config)
    while state.step < 1:  # the loss scale falls until no gradient overflows
        train_step(state, objective, batch, config)
    with Waits() as waits:
        waits.host = step_counts(state)
        train_step(state, objective, batch, config)
    assert state.step == 2
    assert waits.count == {"_local_scalar_dense": 2 if precision == torch.float16 else 1}


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_losses_never_wait_for_a_gpu(kind, precision, monkeypatch):
    """On a fake GPU: tensors with shapes but no values, under the autocast of CUDA."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    state, config = new_state(kind, precision)
    batch = new_batch(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_fake_gpu(state.model)
        with Waits() as waits:
            total, _ = Objective(state.model, config.loss, precision)(batch.to(CUDA))
    assert total.device.type == "cuda" and total.dtype == torch.float32
    assert not waits.count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; the tests above count without one")
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_only_the_check_of_loss_and_gradient_waits(kind, precision):
    state, config = new_state(kind, precision, CUDA)
    batch = new_batch(config).to(CUDA)
    objective = make_objective(state, config)
    for _ in range(3):
        train_step(state, objective, batch, config)
    torch.cuda.set_sync_debug_mode("error")
    try:
        total, parts = objective(batch)
        state.optimizer.zero_grad()
        state.scaler.scale(total).backward()
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm)
        if precision != torch.float16:  # where GradScaler reads whether a gradient overflowed
            state.scaler.step(state.optimizer)
        update_ema(state.ema_model, state.model, decay=0.9)
        state.epoch_progress.add(parts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total.isfinite()

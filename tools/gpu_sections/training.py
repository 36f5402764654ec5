"""Steps of training on a GPU: their time, memory and synchronisations in each precision, and DistributedDataParallel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import torch
from torch import distributed as dist
from torch import nn

from costl.bench.train import BASELINE, KINDS, QUICK, SHAPES, Shape, synthetic_batch, untrained
from costl.config import Config
from costl.data.batch import Batch
from costl.training.state import TrainingState, state_before_training
from costl.training.step import make_objective, train_step
from gpu_sections.common import Setup, relative_distance

PRECISIONS = ("float32", "bfloat16", "float16")
SYNCHRONISATIONS = {"float32": 1, "bfloat16": 1, "float16": 2}
VIDEOS = 32
LOSS_TOLERANCE = 0.05  # of the first loss, relative to float32; the draws of dropout may differ
DDP_TOLERANCE = 1e-4  # of the weights after the steps
STEPS = 10


def steps(setup: Setup) -> None:
    """Every model in each precision, with features of both encoders."""
    setup.table("model", "precision", "ms a step", f"times {BASELINE}", "peak MB", "synchronisations", "first loss")
    for shape in QUICK[:1] if setup.tiny else SHAPES:
        batch_of = cache(lambda patches, shape=shape: _batch(setup, shape, patches=patches))
        baselines: dict[str, float] = {}
        checks: list[tuple[str, bool]] = []
        for kind in KINDS:
            with setup.attempt(f"{kind}, {shape.name}"):
                checks += _steps_of(setup, shape, kind, batch_of(shape.config(kind).patches), baselines)
        setup.checks(checks)


def _steps_of(
    setup: Setup, shape: Shape, kind: str, batch: Batch, baselines: dict[str, float]
) -> Iterator[tuple[str, bool]]:
    losses = {}
    for precision in PRECISIONS:
        state, config = new_state(setup, shape, kind, precision)
        step = _step(state, batch, config)
        peak = setup.peak_bytes(step)
        losses[precision] = state.epoch_progress.mean(vars(config.loss))
        step_s = _step_seconds(setup, step)
        waits = synchronisations(step) if setup.on_gpu else None
        baseline_s = baselines.setdefault(precision, step_s)
        cells = [f"{1e3 * step_s:.1f}", f"{step_s / baseline_s:.2f}", f"{peak / 1e6:.0f}"]
        setup.row(f"{kind}, {shape.name}", precision, *cells, "-" if waits is None else waits, f"{losses[precision]:.4f}")
        if waits is not None:
            expected = SYNCHRONISATIONS[precision]
            yield f"{kind}, {shape.name}, {precision}: {expected} synchronisations a step", waits == expected
    furthest = max(abs(loss / losses["float32"] - 1) for loss in losses.values())
    yield f"{kind}, {shape.name}: the first losses differ by less than {LOSS_TOLERANCE:.0%}", furthest < LOSS_TOLERANCE


def _step_seconds(setup: Setup, step: Callable[[], None]) -> float:
    count = 1 if setup.tiny else STEPS
    for _ in range(count // 3):
        step()
    return setup.seconds(lambda: [step() for _ in range(count)]) / count


def new_state(setup: Setup, shape: Shape, kind: str, precision: str) -> tuple[TrainingState, Config]:
    """The state before the first step of an untrained model, and its settings."""
    config = shape.config(kind)
    config = replace(config, train=replace(config.train, precision=precision))
    torch.manual_seed(0)
    return state_before_training(untrained(config, shape).to(setup.device), config), config


def _batch(setup: Setup, shape: Shape, *, patches: bool) -> Batch:
    return synthetic_batch(shape, min(VIDEOS, shape.queries), patches=patches).to(setup.device)


def _step(
    state: TrainingState, batch: Batch, config: Config, wrap: Callable[[nn.Module], nn.Module] = lambda module: module
) -> Callable[[], None]:
    state.model.train()
    objective = wrap(make_objective(state, config))
    return lambda: train_step(state, objective, batch, config)


def synchronisations(work: Callable[[], object]) -> int:
    """The times that the host waits for the GPU during the work, as torch counts them."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def one_process(setup: Setup) -> None:
    """The same steps with and without DistributedDataParallel in a group of one process."""
    shape = QUICK[0] if setup.tiny else SHAPES[0]
    batch = _batch(setup, shape, patches=True)
    backend = "nccl" if setup.on_gpu else "gloo"
    models, seconds = [], []
    with _group_of_one(setup, backend):
        for wrap in (lambda module: module, partial(nn.parallel.DistributedDataParallel, find_unused_parameters=True)):
            state, config = new_state(setup, shape, "costl", "float32")
            step = _step(state, batch, config, wrap)
            step()
            seconds.append(setup.seconds(step))
            models.append(torch.cat([weight.detach().flatten() for weight in state.model.parameters()]))
        total = torch.ones(3, device=setup.device)
        dist.all_reduce(total)
    setup.table("", "ms a step")
    for name, step_s in zip(("without DDP", f"DDP, {backend}"), seconds, strict=True):
        setup.row(name, f"{1e3 * step_s:.1f}")
    distance = relative_distance(*models)
    close = distance < DDP_TOLERANCE
    setup.checks([(f"after two steps the weights differ by {distance:.1e}", close), ("a sum is right", bool((total == 1).all()))])


@contextmanager
def _group_of_one(setup: Setup, backend: str) -> Iterator[None]:
    dist.init_process_group(backend, init_method=f"file://{setup.folder / 'group-of-one'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()

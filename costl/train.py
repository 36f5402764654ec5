"""The training loop: batch, step, validation, checkpoint; resumes to the last bit on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from costl.config_files import Layer
from costl.data.loader import Loader
from costl.pipeline.errors import CacheError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.logging import ProgressReporter, open_tensorboard
from costl.training.report import Report, describe_epoch, finish_training
from costl.training.run_folder import read_rows, write_rows
from costl.training.setup import Training, reopen_training, start_training
from costl.training.signals import defer_signals
from costl.training.state import save_if_best, save_state
from costl.training.step import make_objective, train_step


def train(
    cache: Path,
    *,
    config: Sequence[Layer] = (),
    overrides: Iterable[str] = (),
    out: Path | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
    ranks: Ranks = SINGLE_PROCESS,
    start_from: Path | str | None = None,
) -> Report:
    """Trains CoSTL from a cache into the run folder `out` (default: a new one in `runs/`).

    Settings are the defaults, changed by those that came with the videos (in the cache), by each layer of `config` in
    turn, then by `overrides` such as "train.epochs=20". The first weights are random, or with `start_from` those of a trained
    model: the folder of a run or of an export, or hf://user/name. Its encoder must be that of the cache, and the settings of
    model, spatial and temporal are those of the model. Of several `ranks` (see
    `costl.training.distributed.process_group`) each calls this with the same arguments; the main process writes the run.
    Unless `train.select_on` is test, training reads nothing of a test split except for the digest of its text in run.json,
    and the names of its videos, which pseudo-labels leave out.
    Raises UsageError for wrong settings or splits, CacheError for a cache that cannot be read, CostlError when the loss is
    not finite.
    """
    training = start_training(
        cache, config=config, overrides=overrides, out=out, device=device, ranks=ranks, start_from=start_from
    )
    return _train(training, progress)


def resume(
    run: Path,
    *,
    cache: Path | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Report:
    """Continues an interrupted run with its own settings, as if it had never stopped (on a CPU to the last bit).

    With another number of `ranks` than before, training continues with the same batches in the same order; only rounding
    and the draws of dropout differ. Raises UsageError for a missing or a finished run, CacheError when its cache or its
    annotations changed, or when another training is writing to the folder.
    """
    return _train(reopen_training(run, cache=cache, device=device, ranks=ranks), progress)


def _train(training: Training, progress: ProgressCallback | None) -> Report:
    """Trains until the last epoch, or until validation has not improved for `patience` epochs; then writes the report."""
    state = training.state
    folder = training.run.folder
    with training.locked():
        rows = read_rows(training.run, up_to=state.epoch)
        try:
            _train_epochs(training, rows, progress if progress and state.ranks.is_main else lambda _: None)
        except (KeyboardInterrupt, CacheError) as stop:
            # The state is that of the last complete step, also in the middle of an epoch.
            with defer_signals():
                if state.ranks.is_main:
                    save_state(state, folder)
            if isinstance(stop, CacheError):
                raise
            raise KeyboardInterrupt(f"Every step is kept; costl train --resume {folder} goes on from there.") from None
        return finish_training(training, rows, lambda fold, name: _train_fold(fold, name, progress))


def _train_fold(fold: Training, name: str, progress: ProgressCallback | None) -> None:
    """Trains a model of the cross-validation, from its last complete epoch."""
    rows = read_rows(fold.run, up_to=fold.state.epoch)
    _train_epochs(fold, rows, lambda update: progress(replace(update, stage=f"{name}: train")) if progress else None)


def _train_epochs(training: Training, rows: list[dict[str, Any]], progress: ProgressCallback) -> None:
    """Appends a row for each epoch to `rows`. However it is left, the state is what a resumed run must start from."""
    state = training.state
    config = training.config
    ranks = state.ranks
    queries = len(training.queries)
    total = training.epochs * queries
    report = ProgressReporter(progress, state, loss_weights=vars(config.loss), epochs=training.epochs, queries=queries)
    loader = Loader(
        training.features,
        patches=config.patches,
        workers=config.train.workers,
        pin=state.device.type == "cuda",
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    tensorboard = open_tensorboard(
        training.run.folder, after_epoch=state.epoch, enabled=config.train.tensorboard and ranks.is_main
    )
    with loader, tensorboard as write_to_tensorboard:
        objective = make_objective(state, config)
        _score_start(training)
        while state.epoch < training.epochs and not _out_of_patience(training):
            last_epoch = describe_epoch(rows[-1], config) if rows else ""
            generator = state.copy_shuffle_generator()
            row = _train_epoch(training, objective, loader, generator, partial(report, last_epoch))
            started = time.perf_counter()
            is_scored = training.is_scored(state.epoch + 1)
            if is_scored:
                row[config.train.select_on] = training.validate()
            row["seconds"] += time.perf_counter() - started
            with defer_signals(), ranks.all_or_none():
                state.end_epoch(generator, row["seconds"])
                rows.append(row)
                if is_scored or config.train.select_on not in training.splits:
                    score = row[config.train.select_on][config.train.select] if is_scored else None
                    save_if_best(state, score, training.run.folder)
                if ranks.is_main:
                    write_rows(training.run, rows)
                    save_state(state, training.run.folder)
            write_to_tensorboard(row)
            progress(Progress("train", state.epoch * queries, total, describe_epoch(row, config)))


def _train_epoch(
    training: Training,
    objective: nn.Module,
    loader: Loader,
    generator: torch.Generator,
    report_queries_done: Callable[[int], None],
) -> dict[str, Any]:
    """Trains on the batches of the epoch that are left, in an order that is drawn from `generator`.

    Returns the row of the epoch: mean losses, and the share of the time that was spent waiting for data.
    """
    state = training.state
    config = training.config
    epoch_progress = state.epoch_progress
    plan = training.plan_epoch(generator)
    queries = sum(len(planned.queries) for planned in plan)  # with pseudo-labels
    labelled = len(training.queries)
    queries_done = sum(len(planned.queries) for planned in plan[: epoch_progress.batches])
    state.model.train()
    started = time.perf_counter()
    with closing(loader.batches(plan[epoch_progress.batches :])) as batches:
        for _ in plan[epoch_progress.batches :]:
            with state.ranks.all_or_none():  # an unreadable part ends all processes
                batch = next(batches)
            waited_s = time.perf_counter() - started
            progress = (state.epoch + queries_done / queries) / training.epochs
            train_step(state, objective, batch, config, progress=progress)
            queries_done += len(batch.queries)
            report_queries_done(labelled * queries_done // queries)
            now = time.perf_counter()
            epoch_progress.seconds += now - started
            epoch_progress.waited_s += waited_s
            started = now
    return {
        "epoch": state.epoch + 1,
        "losses": epoch_progress.means(),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "waiting": epoch_progress.waited_s / epoch_progress.seconds,
        "seconds": epoch_progress.seconds,
    }


def _score_start(training: Training) -> None:
    """Saves the weights of the model that training starts from as the best so far, if there is a split to score them on."""
    state = training.state
    settings = training.config.train
    if training.run.start and state.best_score is None and settings.select_on in training.splits:
        score = training.validate()[settings.select]
        with defer_signals(), state.ranks.all_or_none():
            save_if_best(state, score, training.run.folder)


def _out_of_patience(training: Training) -> bool:
    state = training.state
    return state.best_score is not None and state.epoch - state.best_epoch >= training.config.train.patience

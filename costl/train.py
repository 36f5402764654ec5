"""The training loop: batch, forward, loss, step, EMA, validation, checkpoint; resumes to the last bit on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from costl.config import Config, load_config
from costl.config_files import Layer
from costl.data.annotations import Query
from costl.data.batch import Batch
from costl.data.loader import Loader
from costl.data.queries import data_notes
from costl.data.sampler import PlannedBatch, plan_epoch
from costl.evaluate import evaluate
from costl.metrics.compute import compute_metrics
from costl.model.costl import Outputs
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.formats.files import locked_folder
from costl.pipeline.progress import Progress, ProgressCallback
from costl.plots.training_curves import draw_curves
from costl.predict.predict import predict_split
from costl.training.checkpoint import rng_state
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.ema import update_ema
from costl.training.logging import ProgressReporter, check_tensorboard, open_tensorboard
from costl.training.micro_batches import MicroBatchPlan, SplitBatch, forward_micro_batches, sum_gradients
from costl.training.objective import total_loss
from costl.training.optimizer import set_learning_rate
from costl.training.precision import autocast, may_overflow
from costl.training.preflight import (
    agreed_ranks,
    queries_with_features,
    refuse_other_annotations,
    refuse_other_fps,
    training_splits,
)
from costl.training.run_folder import (
    LEGACY,
    Run,
    create_run,
    legacy_label,
    open_cache,
    read_rows,
    read_run,
    sweep_run,
    write_rows,
    write_summary,
)
from costl.training.signals import defer_signals
from costl.training.state import (
    EpochProgress,
    TrainingState,
    fresh_state,
    load_state,
    refuse_settings_larger_than_last,
    save_if_best,
    save_state,
)

T = TypeVar("T")
NO_VALIDATION = "There is no split {!r}: the weights of the last epoch are kept, and nothing stops training early."


@dataclass(frozen=True)
class Report:
    """How training ended, in the folder `run`.

    `score` is the metric `select` on the split `select_on` at `best_epoch`, None without such a split. `legacy` labels a
    choice made on the test split and is empty otherwise.
    """

    run: Path
    epochs: int
    best_epoch: int
    select: str
    score: float | None
    stopped_early: bool
    seconds: float
    notes: tuple[str, ...] = ()
    select_on: str = "val"
    legacy: str = ""
    exit_code = 0

    def lines(self) -> list[str]:
        """The folder of the run."""
        return [str(self.run)]

    def data(self) -> dict[str, Any]:
        """Every field."""
        return vars(self) | {"run": str(self.run)}

    def messages(self) -> list[str]:
        """The notes, then the number of epochs and the chosen one."""
        split = "test (legacy: chosen on test)" if self.legacy else "validation"
        score = "" if self.score is None else f" with {self.select} {self.score:.1f} on {split}"
        early = ", stopped early" if self.stopped_early else ""
        return [*self.notes, f"{self.epochs} epochs{early}; epoch {self.best_epoch} is kept{score}."]


def train(
    cache: Path,
    *,
    config: Sequence[Layer] = (),
    overrides: Iterable[str] = (),
    out: Path | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Report:
    """Trains CoSTL from a cache into the run folder `out` (default: a new one in `runs/`).

    Settings are the defaults, changed by those that came with the videos (in the cache), by each layer of `config` in
    turn, then by `overrides` such as "train.epochs=20". Of several `ranks` (see
    `costl.training.distributed.process_group`) each calls this with the same arguments; the main process writes the run.
    Unless `train.select_on` is test, training reads nothing of a test split except for the digest of its text in run.json.
    Raises UsageError for wrong settings or splits, CacheError for a cache that cannot be read, CostlError when the loss is
    not finite.
    """
    with ranks.all_or_none():
        features = CacheReader(cache)
        settings = load_config(features.settings, *config, overrides=overrides)
        refuse_other_fps(features, config)
        splits = training_splits(features, settings)
        if settings.train.tensorboard:
            check_tensorboard()
        # Before the run folder is created, so that refused settings leave no folder behind.
        state = fresh_state(settings, features, pick_device(ranks.device(device)))
        _refuse_too_many_micro_batches(splits, features, settings, ranks)
    state.ranks = agreed_ranks(ranks, settings, features, state)
    with ranks.all_or_none():
        run = create_run(out, settings, features) if ranks.is_main else None
    return _train_locked(ranks.broadcast(run), features, splits, state, progress or (lambda _: None))


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
    with ranks.all_or_none():
        stopped = read_run(run)
        if stopped.finished:
            raise UsageError(
                f"{run}: finished already. Evaluate it with costl evaluate --run {run}, or train a new one."
            )
        features = open_cache(stopped, cache)
        splits = training_splits(features, stopped.config)
        refuse_other_annotations(stopped, features, splits)
        refuse_settings_larger_than_last(stopped.config, run)
        state = fresh_state(stopped.config, features, pick_device(ranks.device(device)))
        if (run / "last.safetensors").exists():  # missing when the run stopped before its first checkpoint
            load_state(state, run)
        _refuse_too_many_micro_batches(splits, features, stopped.config, ranks)
    state.ranks = agreed_ranks(ranks, stopped.config, features, state)
    return _train_locked(stopped, features, splits, state, progress or (lambda _: None))


def _refuse_too_many_micro_batches(
    splits: Mapping[str, list[Query]], features: CacheReader, config: Config, ranks: Ranks
) -> None:
    plan = MicroBatchPlan(ranks.rank, ranks.world_size, config.train.accumulate)
    plan.refuse_too_many(queries_with_features(splits["train"], features), config.train.batch_size)


def _train_locked(
    run: Run,
    features: CacheReader,
    splits: Mapping[str, list[Query]],
    state: TrainingState,
    progress: ProgressCallback,
) -> Report:
    """Trains with the run folder locked, after removing the partial files of a killed training."""
    with ExitStack() as lock:
        with state.ranks.all_or_none():
            if state.ranks.is_main:
                lock.enter_context(locked_folder(run.folder))
                sweep_run(run.folder)
        return _train_run(run, features, splits, state, progress)


def _train_run(
    run: Run,
    features: CacheReader,
    splits: Mapping[str, list[Query]],
    state: TrainingState,
    progress: ProgressCallback,
) -> Report:
    """Trains until the last epoch, or until validation has not improved for `patience` epochs; then writes the report."""
    config = run.resolved_config
    rows = read_rows(run, up_to=state.epoch)
    notes = _notes(splits, features, config)
    try:
        _train_epochs(run, rows, features, splits, state, progress if state.ranks.is_main else (lambda _: None))
    except (KeyboardInterrupt, CacheError) as stop:
        # The state is that of the last complete step, also in the middle of an epoch.
        with defer_signals():
            if state.ranks.is_main:
                save_state(state, run.folder)
        if isinstance(stop, CacheError):
            raise
        raise KeyboardInterrupt(f"Every step is kept; costl train --resume {run.folder} goes on from there.") from None
    report = Report(
        run=run.folder,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        select=config.train.select,
        score=state.best_score,
        stopped_early=state.epoch < config.train.epochs,
        seconds=state.seconds,
        notes=tuple(notes),
        select_on=config.train.select_on,
        legacy=legacy_label(config),
    )
    if state.ranks.is_main:
        _draw_and_evaluate(report, rows, features, splits, device=state.device)
        write_summary(run, report)  # last: without it, resuming makes the files that a kill left out
    return report


def _notes(splits: Mapping[str, list[Query]], features: CacheReader, config: Config) -> list[str]:
    notes = [note for split, queries in splits.items() for note in data_notes(split, queries, features)]
    if config.train.select_on not in splits:
        notes.append(NO_VALIDATION.format(config.train.select_on))
    if legacy_label(config):
        notes.append(legacy_label(config))
    return notes


def _draw_and_evaluate(
    report: Report,
    rows: Sequence[Mapping[str, Any]],
    features: CacheReader,
    splits: Mapping[str, list[Query]],
    *,
    device: torch.device,
) -> None:
    """Writes curves.png and the evaluation on the split that chose the epoch."""
    if rows:
        path = report.run / "curves.png"
        draw_curves(path, rows, select=report.select, best_epoch=report.best_epoch, title=report.run.name)
    if report.select_on in splits:
        evaluate(report.run, split=report.select_on, cache=features.path, device=str(device))


def _train_epochs(
    run: Run,
    rows: list[dict[str, Any]],
    features: CacheReader,
    splits: Mapping[str, list[Query]],
    state: TrainingState,
    progress: ProgressCallback,
) -> None:
    """Appends a row for each epoch to `rows`. However it is left, `state` is what a resumed run must start from."""
    config = run.resolved_config
    ranks = state.ranks
    select_on = config.train.select_on
    queries = queries_with_features(splits["train"], features)
    total = config.train.epochs * len(queries)
    micro_batch_plan = MicroBatchPlan(ranks.rank, ranks.world_size, config.train.accumulate)
    reporter = ProgressReporter(
        progress, state, loss_weights=vars(config.loss), epochs=config.train.epochs, queries=len(queries)
    )
    with (
        Loader(
            features,
            patches=config.patches,
            workers=config.train.workers,
            pin=state.device.type == "cuda",
            collate_batch=micro_batch_plan.collate,
        ) as loader,
        open_tensorboard(
            run.folder, after_epoch=state.epoch, enabled=config.train.tensorboard and ranks.is_main
        ) as write_to_tensorboard,
    ):
        while state.epoch < config.train.epochs and not _out_of_patience(state, config):
            last_epoch = _describe_epoch(rows[-1], config) if rows else ""
            plan, shuffle_generator = _plan_epoch(state, queries, features, config)
            row = _train_epoch(state, plan, loader, config, partial(reporter, last_epoch))
            started = time.perf_counter()
            if select_on in splits:
                row[select_on] = _validate(state, splits[select_on], features, config)
            row["seconds"] += time.perf_counter() - started
            with defer_signals(), ranks.all_or_none():
                state.epoch += 1
                state.shuffle_generator = shuffle_generator
                state.epoch_progress = EpochProgress()
                state.seconds += row["seconds"]
                state.random_state = rng_state()
                rows.append(row)
                save_if_best(state, row[select_on][config.train.select] if select_on in row else None, run.folder)
                if ranks.is_main:
                    write_rows(run, rows)
                    save_state(state, run.folder)
            write_to_tensorboard(row)
            progress(Progress("train", state.epoch * len(queries), total, _describe_epoch(row, config)))


def _plan_epoch(
    state: TrainingState, queries: Sequence[Query], features: CacheReader, config: Config
) -> tuple[list[PlannedBatch], torch.Generator]:
    """All batches of the current epoch, also those that are done, and the generator of the order of the next epoch."""
    generator = torch.Generator()
    generator.set_state(state.shuffle_generator.get_state())
    plan = plan_epoch(
        queries,
        features,
        batch_size=config.train.batch_size,
        negative_pairs=config.loss.wrong_query > 0,
        generator=generator,
        bucket_batches=config.train.bucket_batches,
    )
    return plan, generator


def _train_epoch(
    state: TrainingState,
    plan: Sequence[PlannedBatch],
    loader: Loader,
    config: Config,
    report_queries_done: Callable[[int], None],
) -> dict[str, Any]:
    """Trains on the batches of the epoch that are left; -> its row: mean losses, share of the time spent waiting for data."""
    epoch_progress = state.epoch_progress
    queries = sum(len(planned.queries) for planned in plan)
    queries_done = sum(len(planned.queries) for planned in plan[: epoch_progress.batches])
    started = time.perf_counter()
    state.model.train()
    with closing(loader.batches(plan[epoch_progress.batches :])) as batches:
        for batch, waited_s in _with_waiting_time(batches):
            progress = (state.epoch + queries_done / queries) / config.train.epochs
            set_learning_rate(state.optimizer, config.train, step=state.step, progress=progress)
            _train_step(state, batch, config)
            queries_done += len(batch.queries)
            report_queries_done(queries_done)
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


def _with_waiting_time(batches: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def _train_step(state: TrainingState, batch: Batch | SplitBatch, config: Config) -> None:
    """One batch: forward, loss, backward, optimizer step, EMA. Raises CostlError when loss or gradient are not finite.

    A step whose gradient overflows float16 is skipped, and the loss scale is reduced for the next one.
    """
    batch = batch.to(state.device)
    with autocast(state.device, state.precision):
        outputs = _forward(state, batch, config)
    full_batch = batch.full_batch if isinstance(batch, SplitBatch) else batch
    loss, losses = total_loss(outputs, full_batch, config.loss)  # in float32, whatever the outputs are
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    if isinstance(batch, SplitBatch):
        sum_gradients(state.model, state.ranks)
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


def _forward(state: TrainingState, batch: Batch | SplitBatch, config: Config) -> Outputs:
    contrast = config.loss.contrast > 0
    if isinstance(batch, Batch):
        return state.model(**batch.model_inputs(), contrast=contrast)
    draws = (config.train.seed, state.step)
    return forward_micro_batches(state.model, batch, state.ranks, draws=draws, contrast=contrast)


def _non_finite_error(state: TrainingState, batch: Batch | SplitBatch, losses: Mapping[str, Tensor]) -> CostlError:
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


def _validate(
    state: TrainingState, queries: Sequence[Query], features: CacheReader, config: Config
) -> dict[str, float]:
    predictions = predict_split(
        state.ema_model, queries, features, config=config, device=state.device, ranks=state.ranks
    )
    return compute_metrics(predictions, queries, benchmark=config.data.benchmark)["brief"]


def _out_of_patience(state: TrainingState, config: Config) -> bool:
    return state.best_score is not None and state.epoch - state.best_epoch >= config.train.patience


def _describe_epoch(row: Mapping[str, Any], config: Config) -> str:
    """The line of an epoch for the terminal: its number, weighted loss and validation score."""
    loss = sum(getattr(config.loss, name) * value for name, value in row["losses"].items())
    description = f"epoch {row['epoch']}: loss {loss:.3f}"
    if config.train.select_on not in row:
        return description
    score = row[config.train.select_on][config.train.select]
    legacy = f" ({LEGACY})" if legacy_label(config) else ""
    return f"{description}, {config.train.select} {score:.1f}{legacy}"

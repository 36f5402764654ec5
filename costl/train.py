"""One readable loop: batch, loss, step, average, validate, save; resumes where it was, to the bit on a CPU."""

from __future__ import annotations

import math
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
from costl.data.batch import Batch, Planned, plan_epoch
from costl.data.loader import Loader
from costl.data.splits import data_notes
from costl.evaluate import evaluate
from costl.metrics.compute import compute_metrics
from costl.model.costl import Outputs
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.formats.files import alone
from costl.pipeline.progress import Progress, Tell
from costl.plots.run import draw_curves
from costl.predict.predict import predict_split
from costl.training.checkpoint import rng_state
from costl.training.distributed import ALONE, Ranks
from costl.training.logging import Pacer, check_board, open_board
from costl.training.micro_batches import Plan, Split, outputs_in_shares, sum_gradients
from costl.training.objective import total_loss
from costl.training.precision import autocast, may_overflow, pick_device
from costl.training.preflight import agreed, learnable, refuse_another_grid, refuse_other_annotations, training_splits
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
from costl.training.signals import unbroken
from costl.training.state import (
    Midway,
    State,
    follow,
    fresh_state,
    keep_if_best,
    load_state,
    refuse_larger_than_state,
    save_state,
)

T = TypeVar("T")
NO_VALIDATION = "There is no split {!r}: the weights of the last epoch are kept, and nothing stops training early."


@dataclass(frozen=True)
class Report:
    """How training ended: `run` is its folder; `score` is `select` on the split `select_on` at `best_epoch` (None without
    such a split). `legacy` says that this was the test split, and is empty otherwise."""

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
        """The notes, then how many epochs there were and which of them was chosen."""
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
    progress: Tell | None = None,
    ranks: Ranks = ALONE,
) -> Report:
    """Trains CoSTL from a cache into the run folder `out` (default: a new one in `runs/`).

    Settings are the defaults, changed by those that came with the videos (in the cache), by each layer of `config` in
    turn, then by `overrides` such as "train.epochs=20". Of several `ranks` (see `costl.training.distributed.joined`) each calls this with
    the same arguments; the first writes the run. Unless `train.select_on` is test, nothing of a test split is
    read but for the digest of its text in run.json. Raises UsageError for what is wrong with them or the splits,
    CacheError for a cache that cannot be read, CostlError when the loss is no number any more.
    """
    with ranks.together():
        features = CacheReader(cache)
        settings = load_config(features.settings, *config, overrides=overrides)
        refuse_another_grid(features, config)
        splits = training_splits(features, settings)
        if settings.train.tensorboard:
            check_board()
        # Before there is a run, so that what is refused leaves none behind.
        state = fresh_state(settings, features, pick_device(ranks.device(device)))
        _refuse_too_many(splits, features, settings, ranks)
    state.ranks = agreed(ranks, settings, features, state)
    with ranks.together():
        run = create_run(out, settings, features) if ranks.first else None
    return _alone(ranks.tell(run), features, splits, state, progress or (lambda _: None))


def resume(
    run: Path,
    *,
    cache: Path | None = None,
    device: str = "auto",
    progress: Tell | None = None,
    ranks: Ranks = ALONE,
) -> Report:
    """Continues an interrupted run with its own settings, as if it had never stopped (on a CPU to the last bit).

    With another number of `ranks` than before, it goes on with the same batches in the same order, to the same result
    but for rounding and the draws of dropout.
    Raises UsageError when there is no such run or it is finished, CacheError when its cache or annotations changed, or
    another training is at work in the folder.
    """
    with ranks.together():
        stopped = read_run(run)
        if stopped.finished:
            raise UsageError(
                f"{run}: finished already. Evaluate it with costl evaluate --run {run}, or train a new one."
            )
        features = open_cache(stopped, cache)
        splits = training_splits(features, stopped.config)
        refuse_other_annotations(stopped, features, splits)
        refuse_larger_than_state(stopped.config, run)
        state = fresh_state(stopped.config, features, pick_device(ranks.device(device)))
        if (run / "last.safetensors").exists():  # a run can stop before it has anything to continue from
            load_state(state, run)
        _refuse_too_many(splits, features, stopped.config, ranks)
    state.ranks = agreed(ranks, stopped.config, features, state)
    return _alone(stopped, features, splits, state, progress or (lambda _: None))


def _refuse_too_many(splits: Mapping[str, list[Query]], features: CacheReader, config: Config, ranks: Ranks) -> None:
    plan = Plan(ranks.rank, ranks.count, config.train.accumulate)
    plan.refuse_too_many(learnable(splits["train"], features), config.train.batch_size)


def _alone(run: Run, features: CacheReader, splits: Mapping[str, list[Query]], state: State, tell: Tell) -> Report:
    """As `_run`, with no other training at work in the folder, and without what a killed one left half-written."""
    with ExitStack() as held:
        with state.ranks.together():
            if state.ranks.first:
                held.enter_context(alone(run.folder))
                sweep_run(run.folder)
        return _run(run, features, splits, state, tell)


def _run(run: Run, features: CacheReader, splits: Mapping[str, list[Query]], state: State, tell: Tell) -> Report:
    """Epoch after epoch until the last one or until validation has not improved for `patience` of them."""
    config, rows = run.settled, read_rows(run, up_to=state.epoch)
    tell = tell if state.ranks.first else (lambda _: None)
    watched, legacy = config.train.select_on, legacy_label(config)
    notes = [note for split, queries in splits.items() for note in data_notes(split, queries, features)]
    notes += [] if watched in splits else [NO_VALIDATION.format(watched)]
    notes += [legacy] if legacy else []
    try:
        _all_epochs(run, rows, features, splits, state, tell)
    except (KeyboardInterrupt, CacheError) as stop:
        # Up to the last whole step, in the middle of an epoch too; what the step after it began is nowhere yet.
        with unbroken():
            if state.ranks.first:
                save_state(state, run.folder)
        if isinstance(stop, CacheError):
            raise
        raise KeyboardInterrupt(f"Every step is kept; costl train --resume {run.folder} goes on from there.") from None
    report = Report(
        run=run.folder,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        select=config.train.select,
        score=state.best,
        stopped_early=state.epoch < config.train.epochs,
        seconds=state.seconds,
        notes=tuple(notes),
        select_on=watched,
        legacy=legacy,
    )
    if state.ranks.first:
        _show(report, rows, features, splits, device=state.device)
        write_summary(run, report)  # last: until it is there, resuming makes what a kill has left unmade
    return report


def _show(
    report: Report,
    rows: Sequence[Mapping[str, Any]],
    features: CacheReader,
    splits: Mapping[str, list[Query]],
    *,
    device: torch.device,
) -> None:
    """What a finished training leaves to look at: its curves, and the answers on the split that chose the epoch."""
    if rows:
        path, title = report.run / "curves.png", report.run.name
        draw_curves(path, rows, select=report.select, kept=report.best_epoch, title=title)
    watched = {query.vid for query in splits.get(report.select_on, ())}
    if watched & set(features.video_ids):
        evaluate(report.run, split=report.select_on, cache=features.path, device=str(device))


def _all_epochs(
    run: Run,
    rows: list[dict[str, Any]],
    features: CacheReader,
    splits: Mapping[str, list[Query]],
    state: State,
    tell: Tell,
) -> None:
    """`rows` grows by one an epoch. Whenever it is left, `state` is where a run that goes on from it must begin."""
    config, ranks = run.settled, state.ranks
    watched, select = config.train.select_on, config.train.select
    queries = learnable(splits["train"], features)
    make = Plan(ranks.rank, ranks.count, config.train.accumulate).collate
    pace = Pacer(tell, state, weights=vars(config.loss), epochs=config.train.epochs, queries=len(queries))
    with (
        Loader(
            features,
            patches=config.patches,
            workers=config.train.workers,
            pin=state.device.type == "cuda",
            make=make,
        ) as loader,
        open_board(run.folder, after=state.epoch, wanted=config.train.tensorboard and ranks.first) as board,
    ):
        while state.epoch < config.train.epochs and not _out_of_patience(state, config):
            before = _in_words(rows[-1], config) if rows else ""
            shuffle, plan = _plan(state, queries, features, config)
            row = _train_epoch(state, plan, loader, config, partial(pace, before))
            started = time.perf_counter()
            if watched in splits:
                row[watched] = _validate(state, splits[watched], features, config)
            row["seconds"] += time.perf_counter() - started
            with unbroken(), ranks.together():
                state.epoch, state.shuffle, state.midway = state.epoch + 1, shuffle, Midway()
                state.seconds, state.random = state.seconds + row["seconds"], rng_state()
                rows.append(row)
                keep_if_best(state, row[watched][select] if watched in row else None, run.folder)
                if ranks.first:
                    write_rows(run, rows)
                    save_state(state, run.folder)
            board(row)
            done, total = state.epoch * len(queries), config.train.epochs * len(queries)
            tell(Progress("train", done, total, _in_words(row, config)))


def _plan(
    state: State, queries: Sequence[Query], features: CacheReader, config: Config
) -> tuple[torch.Generator, list[Planned]]:
    """The batches of the epoch in hand, those that are done as well, and where `state.shuffle` will stand after it."""
    shuffle = torch.Generator()
    shuffle.set_state(state.shuffle.get_state())
    plan = plan_epoch(
        queries,
        features,
        batch_size=config.train.batch_size,
        wrong=config.loss.wrong_query > 0,
        generator=shuffle,
        bucket_batches=config.train.bucket_batches,
    )
    return shuffle, plan


def _train_epoch(
    state: State, plan: Sequence[Planned], loader: Loader, config: Config, tell: Callable[[int], None]
) -> dict[str, Any]:
    """What is left of one pass; -> its row: the mean of each loss, the share of the time spent waiting for data."""
    midway, queries = state.midway, sum(len(planned.queries) for planned in plan)
    seen = sum(len(planned.queries) for planned in plan[: midway.batches])
    started = time.perf_counter()
    state.model.train()
    with closing(loader.batches(plan[midway.batches :])) as batches:
        for batch, waited_s in _timed(batches):
            _set_rate(state, config, share=(state.epoch + seen / queries) / config.train.epochs)
            _step(state, batch, config)
            seen += len(batch.queries)
            tell(seen)
            now = time.perf_counter()
            midway.seconds, midway.waited_s, started = midway.seconds + now - started, midway.waited_s + waited_s, now
    return {
        "epoch": state.epoch + 1,
        "losses": midway.means(),
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "waiting": midway.waited_s / midway.seconds,
        "seconds": midway.seconds,
    }


def _step(state: State, batch: Batch | Split, config: Config) -> None:
    """One batch: outputs, loss, gradient, step, average. Raises CostlError when the loss is no number.

    A step that float16 overflows in is left out, and the next one is scaled less.
    """
    batch = batch.to(state.device)
    with autocast(state.device, state.precision):
        outputs = _outputs(state, batch, config)
    whole = batch.whole if isinstance(batch, Split) else batch
    total, parts = total_loss(outputs, whole, config.loss)  # in float32, whatever the outputs are
    if not parts:  # no moment in this batch, and only the losses about moments have a weight: the gradient is zero
        total = outputs.saliency.float().sum() * 0
    state.optimizer.zero_grad()
    state.scaler.scale(total).backward()
    if isinstance(batch, Split):
        sum_gradients(state.model, state.ranks)
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm)
    finite = bool((total + norm).isfinite())
    if not finite and not (total.isfinite() and may_overflow(state.scaler)):
        raise _no_number(state, batch, parts)
    with unbroken():
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if finite:
            state.step += 1
            # The average follows closely at first: it would remember the random beginning for too long.
            memory = min(config.train.ema, (1 + state.step) / (10 + state.step))
            follow(state.average, state.model, memory=memory)
        state.midway.add(parts)
        state.random = rng_state()


def _outputs(state: State, batch: Batch | Split, config: Config) -> Outputs:
    contrast = config.loss.contrast > 0
    if isinstance(batch, Batch):
        return state.model(**batch.model_inputs(), matching=contrast)
    draws = (config.train.seed, state.step)
    return outputs_in_shares(state.model, batch, state.ranks, draws=draws, contrast=contrast)


def _set_rate(state: State, config: Config, *, share: float) -> None:
    """Linear warm-up over steps times a cosine over the `share` of training that is done."""
    warm = min(1.0, (state.step + 1) / max(1, config.train.warmup_steps))
    for group in state.optimizer.param_groups:
        group["lr"] = config.train.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * share))


def _no_number(state: State, batch: Batch | Split, parts: Mapping[str, Tensor]) -> CostlError:
    bad = [name for name, value in parts.items() if not value.isfinite()] or ["the gradient"]
    range_ = ", or train.precision=float32: the range of float16 is small" if state.scaler.is_enabled() else ""
    error = CostlError(
        f"Epoch {state.epoch + 1}, step {state.step + 1}: {', '.join(bad)} is not a finite number, in the batch of "
        f"queries {', '.join(str(query.qid) for query in batch.queries)}. The epoch before is kept. Check these "
        f"videos, or train with a smaller train.learning_rate{range_}."
    )
    error.told = not state.ranks.first  # loss and gradient are the same in all processes
    return error


def _timed(batches: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def _validate(state: State, queries: Sequence[Query], features: CacheReader, config: Config) -> dict[str, float]:
    predictions = predict_split(state.average, queries, features, config=config, device=state.device, ranks=state.ranks)
    return compute_metrics(predictions, queries, benchmark=config.data.benchmark)["brief"]


def _out_of_patience(state: State, config: Config) -> bool:
    return state.best is not None and state.epoch - state.best_epoch >= config.train.patience


def _in_words(row: Mapping[str, Any], config: Config) -> str:
    loss = sum(getattr(config.loss, name) * value for name, value in row["losses"].items())
    watched, legacy = config.train.select_on, f" ({LEGACY})" if legacy_label(config) else ""
    score = f", {config.train.select} {row[watched][config.train.select]:.1f}{legacy}" if watched in row else ""
    return f"epoch {row['epoch']}: loss {loss:.3f}{score}"

"""One readable loop: batch, loss, step, average, validate, save; resumes where it was, to the bit on a CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from costl.annotations import Query
from costl.checkpoint import digest
from costl.config import Config, load_config
from costl.dataset import Batch, ahead, training_batches
from costl.evaluate import (
    LEGACY,
    data_notes,
    evaluate,
    legacy_label,
    pick_device,
    predict_split,
    read_queries,
)
from costl.files import alone
from costl.layers import Layer, stated_fps
from costl.metrics import compute_metrics
from costl.model.costl import Outputs
from costl.objective import total_loss
from costl.pictures import draw_curves
from costl.ranks import ALONE, Ranks
from costl.runs import (
    Run,
    annotation_digests,
    create_run,
    open_cache,
    read_rows,
    read_run,
    sweep_run,
    write_rows,
    write_summary,
)
from costl.shares import Plan, Split, outputs_in_shares, sum_gradients
from costl.state import (
    State,
    follow,
    fresh_state,
    keep_if_best,
    load_state,
    refuse_larger_than_state,
    save_state,
)
from pipeline.cache import CacheReader
from pipeline.errors import CacheError, CostlError, UsageError
from pipeline.progress import Progress, Tell

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
    turn, then by `overrides` such as "train.epochs=20". Of several `ranks` (see `costl.ranks.joined`) each calls this with
    the same arguments; the first writes the run. Unless `train.select_on` is test, nothing of a test split is
    read but for the digest of its text in run.json. Raises UsageError for what is wrong with them or the splits,
    CacheError for a cache that cannot be read, CostlError when the loss is no number any more.
    """
    with ranks.together():
        features = CacheReader(cache)
        settings = load_config(features.settings, *config, overrides=overrides)
        _refuse_another_grid(features, config)
        splits = _splits(features, settings)
        place = pick_device(ranks.device(device))
        # Before there is a run, so that what is refused leaves none behind.
        state = fresh_state(settings, features, place)
        _refuse_too_many(splits["train"], features, settings, ranks)
    state.ranks = _agreed(ranks, settings, features, state)
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
        splits = _splits(features, stopped.config)
        _refuse_other_annotations(stopped, features, splits)
        refuse_larger_than_state(stopped.config, run)
        state = fresh_state(stopped.config, features, pick_device(ranks.device(device)))
        if (run / "last.safetensors").exists():  # a run can stop before it has anything to continue from
            load_state(state, run)
        _refuse_too_many(splits["train"], features, stopped.config, ranks)
    state.ranks = _agreed(ranks, stopped.config, features, state)
    return _alone(stopped, features, splits, state, progress or (lambda _: None))


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
    ranks, tell = state.ranks, tell if state.ranks.first else (lambda _: None)
    watched, legacy = config.train.select_on, legacy_label(config)
    notes = [note for split, queries in splits.items() for note in data_notes(split, queries, features)]
    notes += [] if watched in splits else [NO_VALIDATION.format(watched)]
    notes += [legacy] if legacy else []
    queries = _learnable(splits["train"], features)
    while state.epoch < config.train.epochs and not _out_of_patience(state, config):
        started = time.perf_counter()
        before = _in_words(rows[-1], config) if rows else "epoch 1"
        rows.append(_train_epoch(state, queries, features, config, tell, before))
        score = None
        if watched in splits:
            rows[-1][watched] = _validate(state, splits[watched], features, config)
            score = rows[-1][watched][config.train.select]
        rows[-1]["seconds"] = time.perf_counter() - started
        state.seconds += rows[-1]["seconds"]
        with ranks.together():
            keep_if_best(state, score, run.folder)
            if ranks.first:
                write_rows(run, rows)
                save_state(state, run.folder)
        done, total = state.epoch * len(queries), config.train.epochs * len(queries)
        tell(Progress("train", done, total, _in_words(rows[-1], config)))
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
    if ranks.first:
        _show(report, rows, features, splits, device=next(state.model.parameters()).device)
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


def _train_epoch(
    state: State,
    queries: Sequence[Query],
    features: CacheReader,
    config: Config,
    tell: Tell,
    before: str,
) -> dict[str, Any]:
    """One pass over the queries; -> its row: the mean of each loss, the share of the time spent waiting for data."""
    batches = training_batches(
        queries,
        features,
        batch_size=config.train.batch_size,
        patches=config.patches,
        wrong=config.loss.wrong_query > 0,
        generator=state.shuffle,
        make=Plan(state.ranks.rank, state.ranks.count, config.train.accumulate).collate,
    )
    sums: dict[str, Tensor] = {}
    started, waited, seen, steps = time.perf_counter(), 0.0, 0, 0
    state.model.train()
    for batch, waiting in _timed(ahead(batches)):
        _set_rate(state, config, share=(state.epoch + seen / len(queries)) / config.train.epochs)
        for name, value in _step(state, batch, config).items():
            sums[name] = sums.get(name, 0.0) + value
        waited, seen, steps = waited + waiting, seen + len(batch.queries), steps + 1
        tell(Progress("train", state.epoch * len(queries) + seen, config.train.epochs * len(queries), before))
    state.epoch += 1
    return {
        "epoch": state.epoch,
        "losses": {name: float(value) / steps for name, value in sums.items()},
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "waiting": waited / (time.perf_counter() - started),
    }


def _step(state: State, batch: Batch | Split, config: Config) -> dict[str, Tensor]:
    """One batch: outputs, loss, gradient, step, average; -> each loss. Raises CostlError when the loss is no number."""
    device = next(state.model.parameters()).device
    batch = batch.to(device)
    # bfloat16 has the range of float32, so that no loss scaling is needed; losses are taken in full precision.
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported()):
        outputs = _outputs(state, batch, config)
    total, parts = total_loss(outputs, batch.whole if isinstance(batch, Split) else batch, config.loss)
    state.optimizer.zero_grad()
    total.backward()
    if isinstance(batch, Split):
        sum_gradients(state.model, state.ranks)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm)
    if not (total + norm).isfinite():
        raise _no_number(state, batch, parts)
    state.optimizer.step()
    state.step += 1
    # The average follows closely at first: it would remember the random beginning for too long.
    follow(state.average, state.model, memory=min(config.train.ema, (1 + state.step) / (10 + state.step)))
    return {name: value.detach() for name, value in parts.items()}


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
    error = CostlError(
        f"Epoch {state.epoch + 1}, step {state.step + 1}: {', '.join(bad)} is not a finite number, in the batch of "
        f"queries {', '.join(str(query.qid) for query in batch.queries)}. The epoch before is kept. Check these "
        "videos, or train with a smaller train.learning_rate."
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
    device = next(state.average.parameters()).device
    predictions = predict_split(state.average, queries, features, config=config, device=device, ranks=state.ranks)
    return compute_metrics(predictions, queries, benchmark=config.data.benchmark)["brief"]


def _out_of_patience(state: State, config: Config) -> bool:
    return state.best is not None and state.epoch - state.best_epoch >= config.train.patience


def _learnable(queries: Iterable[Query], features: CacheReader) -> list[Query]:
    known = set(features.video_ids)
    return [query for query in queries if query.vid in known]


def _refuse_too_many(queries: Sequence[Query], features: CacheReader, config: Config, ranks: Ranks) -> None:
    Plan(ranks.rank, ranks.count, config.train.accumulate).refuse_too_many(
        _learnable(queries, features), config.train.batch_size
    )


def _agreed(ranks: Ranks, config: Config, features: CacheReader, state: State) -> Ranks:
    """The ranks, ready to share what a step makes. Raises UsageError where they are not about to do the same."""
    if ranks.count > 1:
        ranks.same(
            {
                "version of torch": torch.__version__,
                "settings": config.to_yaml(),
                "features": str(sorted(features.fingerprint.items())),
                "videos with features": str(sorted(features.video_ids)),
                "annotations": str(sorted(annotation_digests(features).items())),
                "weights to begin with": digest(state.model.state_dict()),
            }
        )
    return ranks.on(next(state.model.parameters()).device)


def _splits(features: CacheReader, config: Config) -> dict[str, list[Query]]:
    """Queries of `train` and, where there is one, of the split to choose on; refuses what that could not tell."""
    watched = config.train.select_on
    names = ["train", *([watched] if watched in features.splits else [])]
    splits = {split: read_queries(features, split, domain=config.data.domain) for split in names}
    if not any(query.windows or query.clip_ids for query in splits["train"]):
        raise UsageError(f"{features.path}: no query of 'train' has a label, so that there is nothing to learn from.")
    if not {query.vid for query in splits["train"]} & set(features.video_ids):
        raise UsageError(f"{features.path}: no training video has features. costl status {features.path} says why.")
    if watched in splits:
        measured = compute_metrics([], splits[watched], benchmark=config.data.benchmark)["brief"]
        if config.train.select not in measured:
            raise UsageError(
                f"train.select is {config.train.select!r}, which the labels of {watched!r} cannot tell. "
                f"Choose one of {', '.join(measured)}."
            )
    return splits


def _refuse_another_grid(features: CacheReader, layers: Iterable[Layer]) -> None:
    for name, fps in stated_fps(layers).items():
        if not math.isclose(fps, features.fps):
            raise CacheError(
                f"{features.path} has {features.fps:g} clips a second, the settings {name} are made for {fps:g}. Extract "
                f"again with --fps {fps:g} and another --out, or leave out --config {name}."
            )


def _refuse_other_annotations(run: Run, features: CacheReader, splits: Iterable[str]) -> None:
    now = annotation_digests(features)
    for split in splits:
        if now[split] != run.annotations.get(split):
            raise CacheError(
                f"{features.path}: the annotations of {split!r} have changed since {run.folder} began, which therefore "
                "cannot be continued. Train a new run."
            )


def _in_words(row: Mapping[str, Any], config: Config) -> str:
    loss = sum(getattr(config.loss, name) * value for name, value in row["losses"].items())
    watched, legacy = config.train.select_on, f" ({LEGACY})" if legacy_label(config) else ""
    score = f", {config.train.select} {row[watched][config.train.select]:.1f}{legacy}" if watched in row else ""
    return f"epoch {row['epoch']}: loss {loss:.3f}{score}"

"""Everything before the first step: the checks of settings and data, the state, the run folder and its lock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from costl.config import Config, load_config
from costl.config_files import Layer, stated_fps
from costl.data.annotations import Query
from costl.data.queries import data_notes, read_queries
from costl.data.sampler import PlannedBatch, plan_epoch
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.formats.files import locked_folder
from costl.predict.predict import predict_split
from costl.training.checkpoint import checkpoint_path, load_checkpoint, refuse_oversized_settings, weights_digest
from costl.training.distributed import Ranks
from costl.training.logging import check_tensorboard
from costl.training.run_folder import Run, annotation_digests, create_run, legacy_label, open_cache, read_run, sweep_run
from costl.training.state import TrainingState, fresh_state, load_state


@dataclass(frozen=True)
class Training:
    """A training that can start: its run, its cache, its state, and the queries of `train` and of `train.select_on`."""

    run: Run
    features: CacheReader
    splits: Mapping[str, list[Query]]
    state: TrainingState

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self.run.resolved_config

    @property
    def queries(self) -> list[Query]:
        """The training queries whose videos have features."""
        vids = set(self.features.video_ids)
        return [query for query in self.splits["train"] if query.vid in vids]

    @property
    def notes(self) -> list[str]:
        """What to know about the data and the choice of the epoch before trusting a number."""
        select_on = self.config.train.select_on
        notes = [note for split, queries in self.splits.items() for note in data_notes(split, queries, self.features)]
        if select_on not in self.splits:
            notes.append(
                f"There is no split {select_on!r}: the weights of the last epoch are kept, and nothing stops training early."
            )
        label = legacy_label(self.config)
        return [*notes, label] if label else notes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run folder, and removes the partial files of a killed training."""
        with ExitStack() as lock:
            with self.state.ranks.all_or_none():
                if self.state.ranks.is_main:
                    lock.enter_context(locked_folder(self.run.folder))
                    sweep_run(self.run.folder)
            yield

    def plan_epoch(self, generator: torch.Generator) -> list[PlannedBatch]:
        """All batches of an epoch, also those that are done."""
        return plan_epoch(
            self.queries,
            self.features,
            batch_size=self.config.train.batch_size,
            negative_pairs=self.config.loss.wrong_query > 0,
            generator=generator,
            bucket_batches=self.config.train.bucket_batches,
        )

    def validate(self) -> dict[str, float]:
        """The metrics of the averaged weights on the split `train.select_on`."""
        state = self.state
        queries = self.splits[self.config.train.select_on]
        predictions = predict_split(
            state.ema_model, queries, self.features, config=self.config, device=state.device, ranks=state.ranks
        )
        return compute_metrics(predictions, queries, benchmark=self.config.data.benchmark)["brief"]


def start_training(
    cache: Path,
    *,
    config: Sequence[Layer],
    overrides: Iterable[str],
    out: Path | None,
    device: str,
    ranks: Ranks,
) -> Training:
    """A new training; see `costl.train.train`. Nothing is written when it is refused."""
    with ranks.all_or_none():
        features = CacheReader(cache)
        settings = load_config(features.settings, *config, overrides=overrides)
        _refuse_other_fps(features, config)
        splits = _read_splits(features, settings)
        _refuse_idle_processes(settings, ranks)
        if settings.train.tensorboard:
            check_tensorboard()
        state = fresh_state(settings, features, pick_device(ranks.device(device)))
    state.ranks = _agreed_ranks(ranks, settings, features, state)
    with ranks.all_or_none():
        run = create_run(out, settings, features) if ranks.is_main else None
    return Training(ranks.broadcast(run), features, splits, state)


def reopen_training(run_folder: Path, *, cache: Path | None, device: str, ranks: Ranks) -> Training:
    """An interrupted training, as it was after its last step; see `costl.train.resume`."""
    with ranks.all_or_none():
        run = read_run(run_folder)
        if run.finished:
            raise UsageError(
                f"{run_folder}: finished already. Evaluate it with costl evaluate --run {run_folder}, or train a new one."
            )
        features = open_cache(run, cache)
        splits = _read_splits(features, run.config)
        _refuse_other_annotations(run, features, splits)
        _refuse_idle_processes(run.config, ranks)
        is_saved = checkpoint_path(run_folder, "last").exists()  # missing when it stopped before its first checkpoint
        if is_saved:
            refuse_oversized_settings(run.config, load_checkpoint(run_folder, "last")[0], str(run_folder))
        state = fresh_state(run.config, features, pick_device(ranks.device(device)))
        if is_saved:
            load_state(state, run_folder)
    state.ranks = _agreed_ranks(ranks, run.config, features, state)
    return Training(run, features, splits, state)


def _read_splits(features: CacheReader, config: Config) -> dict[str, list[Query]]:
    """The queries of `train` and of the split `train.select_on`, if the cache has it.

    Raises UsageError for splits that are missing or empty, for a `train` without labels or features, and when the labels
    of `train.select_on` do not allow the metric `train.select`.
    """
    select_on = config.train.select_on
    names = ["train", *([select_on] if select_on in features.splits else [])]
    splits = {split: read_queries(features, split, domain=config.data.domain) for split in names}
    if not any(query.windows or query.clip_ids for query in splits["train"]):
        raise UsageError(f"{features.path}: no query of 'train' has a label, so that there is nothing to learn from.")
    if not {query.vid for query in splits["train"]} & set(features.video_ids):
        raise UsageError(
            f"{features.path}: no training video has features. costl cache status {features.path} says why."
        )
    if select_on in splits:
        metrics = compute_metrics([], splits[select_on], benchmark=config.data.benchmark)["brief"]
        if config.train.select not in metrics:
            raise UsageError(
                f"train.select is {config.train.select!r}, which cannot be computed from the labels of {select_on!r}. "
                f"Choose one of {', '.join(metrics)}."
            )
    return splits


def _refuse_idle_processes(config: Config, ranks: Ranks) -> None:
    """Raises UsageError when even a batch with as many videos as queries has no video for some process."""
    batch_size = config.train.batch_size
    if ranks.world_size > batch_size:
        raise UsageError(
            f"{ranks.world_size} processes are more than a batch can be shared by: train.batch_size is {batch_size}. Start "
            f"at most {batch_size} (torchrun --nproc_per_node={batch_size}), or train with a larger train.batch_size."
        )


def _refuse_other_fps(features: CacheReader, layers: Iterable[Layer]) -> None:
    """Raises CacheError for settings that are made for clips of another length than the cache has."""
    for name, fps in stated_fps(layers).items():
        if not math.isclose(fps, features.fps):
            raise CacheError(
                f"{features.path} has {features.fps:g} clips a second, the settings {name} are made for {fps:g}. Extract "
                f"again with --fps {fps:g} and another --out, or leave out --config {name}."
            )


def _refuse_other_annotations(run: Run, features: CacheReader, splits: Iterable[str]) -> None:
    """Raises CacheError when the annotations have changed since the run started: it would learn from something else."""
    digests = annotation_digests(features)
    for split in splits:
        if digests[split] != run.annotations.get(split):
            raise CacheError(
                f"{features.path}: the annotations of {split!r} have changed since {run.folder} started, so the run cannot "
                "be continued. Train a new run."
            )


def _agreed_ranks(ranks: Ranks, config: Config, features: CacheReader, state: TrainingState) -> Ranks:
    """The ranks, ready to sum tensors. Raises UsageError when the processes do not start the same training."""
    if ranks.world_size > 1:
        ranks.require_same(
            {
                "version of torch": torch.__version__,
                "settings": config.to_yaml(),
                "features": str(sorted(features.fingerprint.items())),
                "videos with features": str(sorted(features.video_ids)),
                "annotations": str(sorted(annotation_digests(features).items())),
                "initial weights": weights_digest(state.model.state_dict()),
            }
        )
    return ranks.for_device(state.device)

"""Everything before the first step: the checked settings and data, the state, the run folder and its lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from costl.config import Config
from costl.config_files import Layer
from costl.data.annotations import Query
from costl.data.pseudo_labels import PseudoLabels, pseudo_labels
from costl.data.queries import data_notes, unlabelled_videos
from costl.data.sampler import PlannedBatch, plan_epoch
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import locked_folder
from costl.predict.predict import predict_split
from costl.training.checkpoint import checkpoint_path, load_checkpoint, refuse_oversized_settings, weights_digest
from costl.training.distributed import Ranks
from costl.training.inputs import read_interrupted, read_new, with_features
from costl.training.logging import check_tensorboard
from costl.training.run_folder import Run, annotation_digests, create_run, legacy_label, sweep_run
from costl.training.state import TrainingState, fresh_state, load_start, load_state

# Up to so many queries, all epochs have pseudo-labels; of twice as many, the first half. Later ones would cost R1@0.5.
PSEUDO_LABEL_QUERIES = 180


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
        return with_features(self.splits["train"], self.features)

    @cached_property
    def pseudo_labels(self) -> PseudoLabels | None:
        """Draws pseudo-labels, see `costl.data.pseudo_labels`; None for features or labels that do not allow any.

        Of the videos that no query of the cache is about, all are used.
        """
        queries = self.queries
        if not (self.features.joint.is_known and any(query.windows for query in queries)):
            return None
        return pseudo_labels(queries, self.features, unlabelled_videos(self.features))

    @property
    def epochs(self) -> int:
        """The maximum number of epochs."""
        assert self.config.train.epochs is not None, "start_training sets it"
        return self.config.train.epochs

    def is_scored(self, epoch: int) -> bool:
        """Whether the model is validated after this epoch."""
        settings = self.config.train
        is_due = epoch % settings.validate_every == 0 or epoch == self.epochs
        return is_due and settings.select_on in self.splits

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
        queries = self.queries
        count = self.config.train.pseudo_labels or 0  # a run of an earlier version has none
        is_due = self.state.epoch * len(queries) < PSEUDO_LABEL_QUERIES * self.epochs
        drawn = self.pseudo_labels.draw(count, generator) if count and is_due and self.pseudo_labels else []
        return plan_epoch(
            [*queries, *drawn],
            self.features,
            batch_size=self.config.train.batch_size,
            negative_pairs=self.config.loss.wrong_query > 0,
            generator=generator,
            bucket_batches=self.config.train.bucket_batches,
            splice=self.config.train.splice or 0.0,  # a run of an earlier version has none
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
    start_from: Path | str | None = None,
) -> Training:
    """A new training; see `costl.train.train`. Nothing is written when it is refused."""
    with ranks.all_or_none():
        features, settings, splits = read_new(cache, config, overrides, start_from)
        _refuse_idle_processes(settings, ranks)
        if settings.train.tensorboard:
            check_tensorboard()
        state = fresh_state(settings, features, pick_device(ranks.device(device)))
        start = load_start(state, start_from)
    state.ranks = _agreed_ranks(ranks, settings, features, state)
    with ranks.all_or_none():
        run = create_run(out, settings, features, start) if ranks.is_main else None
    return Training(ranks.broadcast(run), features, splits, state)


def reopen_training(run_folder: Path, *, cache: Path | None, device: str, ranks: Ranks) -> Training:
    """An interrupted training, as it was after its last step; see `costl.train.resume`."""
    with ranks.all_or_none():
        run, features, splits = read_interrupted(run_folder, cache)
        _refuse_idle_processes(run.config, ranks)
        is_saved = checkpoint_path(run_folder, "last").exists()  # missing when it stopped before its first checkpoint
        if is_saved:
            refuse_oversized_settings(run.config, load_checkpoint(run_folder, "last")[0], str(run_folder))
        state = fresh_state(run.config, features, pick_device(ranks.device(device)))
        if is_saved:
            load_state(state, run_folder)
        else:
            _load_same_start(state, run)
    state.ranks = _agreed_ranks(ranks, run.config, features, state)
    return Training(run, features, splits, state)


def _load_same_start(state: TrainingState, run: Run) -> None:
    """Loads the weights that the run started from. Raises UsageError when they have changed since."""
    if load_start(state, run.start.get("model")) != run.start:
        raise UsageError(
            f"{run.folder}: {run.start['model']} has other weights than when this run started. Train a new run."
        )


def _refuse_idle_processes(config: Config, ranks: Ranks) -> None:
    """Raises UsageError when even a batch with as many videos as queries has no video for some process."""
    batch_size = config.train.batch_size
    if ranks.world_size > batch_size:
        raise UsageError(
            f"{ranks.world_size} processes are more than a batch can be shared by: train.batch_size is {batch_size}. Start "
            f"at most {batch_size} (torchrun --nproc_per_node={batch_size}), or train with a larger train.batch_size."
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

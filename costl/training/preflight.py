"""Checks before training starts: labelled splits, settings and annotations that fit the cache, processes that agree."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from costl.config import Config
from costl.config_files import Layer, stated_fps
from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.training.checkpoint import weights_digest
from costl.training.distributed import Ranks
from costl.training.run_folder import Run, annotation_digests
from costl.training.state import TrainingState


def training_splits(features: CacheReader, config: Config) -> dict[str, list[Query]]:
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


def queries_with_features(queries: Iterable[Query], features: CacheReader) -> list[Query]:
    """The queries whose videos have features."""
    vids = set(features.video_ids)
    return [query for query in queries if query.vid in vids]


def agreed_ranks(ranks: Ranks, config: Config, features: CacheReader, state: TrainingState) -> Ranks:
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


def refuse_other_fps(features: CacheReader, layers: Iterable[Layer]) -> None:
    """Raises CacheError for settings that are made for clips of another length than the cache has."""
    for name, fps in stated_fps(layers).items():
        if not math.isclose(fps, features.fps):
            raise CacheError(
                f"{features.path} has {features.fps:g} clips a second, the settings {name} are made for {fps:g}. Extract "
                f"again with --fps {fps:g} and another --out, or leave out --config {name}."
            )


def refuse_other_annotations(run: Run, features: CacheReader, splits: Iterable[str]) -> None:
    """Raises CacheError when the annotations have changed since the run started: it would learn from something else."""
    digests = annotation_digests(features)
    for split in splits:
        if digests[split] != run.annotations.get(split):
            raise CacheError(
                f"{features.path}: the annotations of {split!r} have changed since {run.folder} started, so the run cannot "
                "be continued. Train a new run."
            )

"""What must fit before training starts: splits that can be learned from, settings and annotations that are the cache's."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from costl.config import Config
from costl.config_files import Layer, stated_fps
from costl.data.annotations import Query
from costl.data.splits import read_queries
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.training.checkpoint import digest
from costl.training.distributed import Ranks
from costl.training.run_folder import Run, annotation_digests
from costl.training.state import State


def training_splits(features: CacheReader, config: Config) -> dict[str, list[Query]]:
    """Queries of `train` and, where there is one, of the split to choose on; refuses what that could not tell.

    Raises UsageError for splits that are missing or empty, and where nothing can be learned or chosen.
    """
    watched = config.train.select_on
    names = ["train", *([watched] if watched in features.splits else [])]
    splits = {split: read_queries(features, split, domain=config.data.domain) for split in names}
    if not any(query.windows or query.clip_ids for query in splits["train"]):
        raise UsageError(f"{features.path}: no query of 'train' has a label, so that there is nothing to learn from.")
    if not {query.vid for query in splits["train"]} & set(features.video_ids):
        raise UsageError(
            f"{features.path}: no training video has features. costl cache status {features.path} says why."
        )
    if watched in splits:
        measured = compute_metrics([], splits[watched], benchmark=config.data.benchmark)["brief"]
        if config.train.select not in measured:
            raise UsageError(
                f"train.select is {config.train.select!r}, which the labels of {watched!r} cannot tell. "
                f"Choose one of {', '.join(measured)}."
            )
    return splits


def learnable(queries: Iterable[Query], features: CacheReader) -> list[Query]:
    """Those whose videos have features."""
    known = set(features.video_ids)
    return [query for query in queries if query.vid in known]


def agreed(ranks: Ranks, config: Config, features: CacheReader, state: State) -> Ranks:
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
    return ranks.on(state.device)


def refuse_another_grid(features: CacheReader, layers: Iterable[Layer]) -> None:
    """Raises CacheError for settings that are made for other clips than these features have."""
    for name, fps in stated_fps(layers).items():
        if not math.isclose(fps, features.fps):
            raise CacheError(
                f"{features.path} has {features.fps:g} clips a second, the settings {name} are made for {fps:g}. Extract "
                f"again with --fps {fps:g} and another --out, or leave out --config {name}."
            )


def refuse_other_annotations(run: Run, features: CacheReader, splits: Iterable[str]) -> None:
    """Raises CacheError where a run cannot be continued, since it would learn from something else."""
    now = annotation_digests(features)
    for split in splits:
        if now[split] != run.annotations.get(split):
            raise CacheError(
                f"{features.path}: the annotations of {split!r} have changed since {run.folder} began, which therefore "
                "cannot be continued. Train a new run."
            )

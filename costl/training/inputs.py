"""The settings and data of a training, checked without loading PyTorch, so that a refusal takes a fraction of a second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from costl.ask.hub import CONFIG
from costl.ask.model_folder import is_run, model_folder, read_export_config
from costl.config import DROPOUT, Config, Train, load_config
from costl.config_files import Layer, stated_fps
from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.fingerprint import explain_difference
from costl.training.run_folder import Run, annotation_digests, open_cache, read_run

# Fields of a fingerprint that say how frames were read and stored. Models of one encoder may differ in them.
_FRAME_FIELDS = frozenset(["decoder", "dtype", "fps", "layers", "open_clip", "precision", "resize", "sampling"])


def read_new(
    cache: Path, config: Sequence[Layer], overrides: Iterable[str], start_from: Path | str | None = None
) -> tuple[CacheReader, Config, dict[str, list[Query]]]:
    """The cache, the settings and the splits of a new training; for the errors see `costl.train.train`.

    With `start_from`, the settings of the model itself are those of that trained model.
    """
    features = CacheReader(cache)
    start = [] if start_from is None else [_start_settings(start_from, features)]
    settings = load_config(features.settings, *config, *start, overrides=overrides)
    if start and _model_settings(settings) != start[0]:
        raise UsageError(
            f"{start_from}: its weights are of a model with other settings than --set asks for. Leave out the settings of "
            "model, spatial and temporal, or leave out --start-from."
        )
    _refuse_other_fps(features, config)
    splits = _read_splits(features, settings)
    queries = len(with_features(splits["train"], features))
    return features, fit_to_data(settings, queries=queries), splits


def with_features(queries: Iterable[Query], features: CacheReader) -> list[Query]:
    """The queries whose videos have features."""
    vids = set(features.video_ids)
    return [query for query in queries if query.vid in vids]


def _start_settings(start_from: Path | str, features: CacheReader) -> dict[str, Any]:
    """The settings of the model at `start_from`. Raises CacheError if it was trained with another encoder."""
    folder = model_folder(start_from)
    if is_run(folder):
        run = read_run(folder)
        config, fingerprint = run.config, run.fingerprint
    else:
        content = read_export_config(folder / CONFIG)
        config, fingerprint = content["config"], content["fingerprint"]
    theirs, ours = (
        {field: value for field, value in fields.items() if field not in _FRAME_FIELDS}
        for fields in (fingerprint, features.fingerprint)
    )
    differences = explain_difference(theirs, ours, was="the model has", now="the cache has")
    if differences:
        raise CacheError(
            f"{start_from}: trained with another encoder than {features.path} ({'; '.join(differences)}). Start from a model "
            "that was trained with the encoder of this cache."
        )
    return _model_settings(config)


def _model_settings(config: Config) -> dict[str, Any]:
    """The settings that decide which weights a model has, and how it uses them."""
    sections = config.to_dict()
    model = {name: sections["model"][name] for name in ("kind", "width", "heads")}
    return {"model": model, "spatial": sections["spatial"], "temporal": sections["temporal"]}


def read_interrupted(folder: Path, cache: Path | None) -> tuple[Run, CacheReader, dict[str, list[Query]]]:
    """The run, the cache and the splits of an interrupted training; for the errors see `costl.train.resume`."""
    run = read_run(folder)
    if run.finished:
        raise UsageError(f"{folder}: finished already. Evaluate it with costl evaluate --run {folder}, or train a new one.")
    features = open_cache(run, cache)
    splits = _read_splits(features, run.config)
    _refuse_other_annotations(run, features, splits)
    return run, features, splits


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



_EPOCHS = 60
_FEWEST_STEPS = 600  # fewer do not train the attention to patches, however few the sentences are
_FEW_QUERIES = 1000
_PSEUDO_LABELS = 60


def fit_to_data(settings: Config, *, queries: int) -> Config:
    """The settings for so many training queries, with a number for each of model and training that is None by default.

    Few queries are few batches an epoch. Without a number of epochs, training then takes more of them, validates at most 60
    times, warms up for at most a fifth of all steps, and does not stop early: few queries validate as few, and the last
    epochs, with a low learning rate, are the best. Its videos are spliced, it learns from pseudo-labels as well, and its
    dropout is higher.
    """
    is_few = queries <= _FEW_QUERIES
    dropout = (2 * DROPOUT if is_few else DROPOUT) if settings.model.dropout is None else settings.model.dropout
    train = _fit_training(settings.train, queries, is_few)
    return replace(settings, model=replace(settings.model, dropout=dropout), train=train)


def _fit_training(settings: Train, queries: int, is_few: bool) -> Train:
    splice = float(is_few) if settings.splice is None else settings.splice
    pseudo_labels = _PSEUDO_LABELS * is_few if settings.pseudo_labels is None else settings.pseudo_labels
    settings = replace(settings, splice=splice, pseudo_labels=pseudo_labels)
    if settings.epochs is not None:
        return settings
    batches = math.ceil((queries + pseudo_labels) / settings.batch_size)
    steps = settings.steps or max(_FEWEST_STEPS, _EPOCHS * batches)
    epochs = math.ceil(steps / batches)
    validate_every = max(settings.validate_every, math.ceil(epochs / _EPOCHS))
    return replace(
        settings,
        epochs=epochs,
        steps=None,
        validate_every=validate_every,
        patience=epochs if is_few else settings.patience * validate_every,
        warmup_steps=min(settings.warmup_steps, steps // 5),
    )

"""A run and its scores: trained unless it is finished, and evaluated unless a valid evaluation exists."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from costl.config_files import Layer
from costl.data.annotations import Prediction, parse_predictions
from costl.evaluate import PREDICTIONS, evaluate
from costl.experiments.tables import Numbers
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.progress import ProgressCallback
from costl.train import resume, train
from costl.training.inputs import read_new
from costl.training.run_folder import Run, annotation_digests, read_run

NO_FOLDS = "train.folds=0"  # an experiment compares runs with each other, not with CLIP alone


def train_and_score(
    folder: Path,
    cache: Path,
    splits: Sequence[str],
    *,
    weights: str = "best",
    config: Sequence[Layer] = (),
    overrides: Sequence[str],
    device: str,
    progress: ProgressCallback | None,
) -> tuple[dict[str, Numbers], Sequence[str]]:
    """The headline numbers (percent) of the run in `folder` by split, and the notes of its training.

    A missing run is trained, and an interrupted one is resumed. An earlier evaluation is reused if it is newer than the
    weights and was made on the annotations of the training, by the run's own rules. `weights` are "best" or "last".

    Raises UsageError for a run with other settings.
    """
    features = CacheReader(cache)
    notes: Sequence[str] = ()
    refuse_other_settings(folder, cache, config, overrides)
    if not (folder / "run.json").exists():
        settings = [*overrides, NO_FOLDS]
        notes = train(cache, config=config, overrides=settings, out=folder, device=device, progress=progress).notes
    elif not read_run(folder).finished:
        notes = resume(folder, device=device, progress=progress).notes
    scores = {}
    for split in splits:
        scores[split] = _stored_scores(folder, split, weights, features)
        if not scores[split]:
            out = _evaluation_folder(folder, split, weights)
            evaluation = evaluate(folder, split=split, weights=weights, out=out, device=device, progress=progress)
            scores[split] = evaluation.metrics["brief"]
    return scores, notes


def refuse_other_settings(folder: Path, cache: Path, config: Sequence[Layer], overrides: Sequence[str]) -> None:
    """Raises UsageError if `folder` has a run with other settings than `train_and_score` uses."""
    if not (folder / "run.json").exists():
        return
    _, settings, _ = read_new(cache, config, [*overrides, NO_FOLDS])
    if read_run(folder).config != settings:
        raise UsageError(f"{folder}: was trained with other settings. Delete it, or choose another folder with --out.")


def metrics_and_predictions(
    run: Run, split: str, *, cache: Path, device: str, progress: ProgressCallback
) -> tuple[Mapping[str, Any], list[Prediction]]:
    """The metrics and predictions of an earlier evaluation, by whatever rules it was scored.

    The run is evaluated first if there is no evaluation, or if it is damaged or older than the weights. A split without
    labels has the metrics `{"brief": {}}`.
    """
    try:
        return _read_evaluation(run.folder, split)
    except (OSError, ValueError, UsageError):  # missing, older than the weights or damaged
        evaluate(run.folder, split=split, cache=cache, device=device, progress=progress)
    return _read_evaluation(run.folder, split)


def stored_predictions(folder: Path, split: str, weights: str) -> list[Prediction]:
    """The predictions that `train_and_score` wrote for a run. Raises OSError or UsageError if they cannot be read."""
    path = _evaluation_folder(folder, split, weights) / PREDICTIONS
    return parse_predictions(path.read_text(encoding="utf-8"), str(path))


def with_stage_prefix(name: str, progress: ProgressCallback | None) -> ProgressCallback | None:
    """A callback that reports every stage as `name: stage`, for one run of several."""
    return progress and (lambda update: progress(replace(update, stage=f"{name}: {update.stage}")))


def _stored_scores(folder: Path, split: str, weights: str, features: CacheReader) -> Numbers:
    """The scores of an earlier evaluation; empty if there is none that is still valid."""
    run = read_run(folder)
    try:
        metrics = _read_metrics(folder, split, weights)
        rules = metrics["scored"]
        own_rules = not rules["official"] and rules["benchmark"] == run.config.data.benchmark
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    same_annotations = annotation_digests(features)[split] == run.annotations.get(split)
    return metrics["brief"] if own_rules and same_annotations else {}


def _read_evaluation(folder: Path, split: str) -> tuple[Mapping[str, Any], list[Prediction]]:
    return _read_metrics(folder, split, "best"), stored_predictions(folder, split, "best")


def _read_metrics(folder: Path, split: str, weights: str) -> dict[str, Any]:
    """The metrics of an earlier evaluation. Raises OSError or ValueError if it is incomplete, damaged or older than the
    weights."""
    evaluation = _evaluation_folder(folder, split, weights)
    trained_ns = (folder / f"{weights}.safetensors").stat().st_mtime_ns
    for name in (PREDICTIONS, "predictions.png"):  # the picture is written last
        if (evaluation / name).stat().st_mtime_ns < trained_ns:
            raise ValueError(f"{evaluation / name}: older than the weights")
    path = evaluation / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"brief": {}}
    if not isinstance(metrics, dict) or not isinstance(metrics.get("brief"), dict):
        raise ValueError(f"{path}: no 'brief' numbers in it")
    return metrics


def _evaluation_folder(folder: Path, split: str, weights: str) -> Path:
    return folder / (f"eval-{split}" if weights == "best" else f"eval-{split}-{weights}")

"""A run and its scores: trained unless it is finished, and evaluated on a split unless that is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costl.config import load_config
from costl.config_files import Layer
from costl.data.annotations import Prediction, parse_predictions
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.progress import ProgressCallback
from costl.train import resume, train
from costl.training.run_folder import Run, annotation_digests, read_run


@dataclass(frozen=True)
class SplitScores:
    """The headline numbers of a run on a split, in percent; the folder of the evaluation and its notes."""

    brief: Mapping[str, float]
    folder: Path
    notes: tuple[str, ...] = ()


def train_unless_finished(
    folder: Path,
    features: CacheReader,
    *,
    config: Sequence[Layer] = (),
    overrides: Sequence[str],
    device: str,
    progress: ProgressCallback | None,
) -> tuple[str, ...]:
    """Trains the run in `folder`, or resumes it, or leaves it as it is when it is finished; -> the notes of training.

    Raises UsageError where the run was trained with other settings.
    """
    if not (folder / "run.json").exists():
        report = train(features.path, config=config, overrides=overrides, out=folder, device=device, progress=progress)
        return report.notes
    run = read_run(folder)
    if run.config != load_config(features.settings, *config, overrides=overrides):
        raise UsageError(f"{folder}: was trained with other settings. Delete it, or choose another folder with --out.")
    if run.finished:
        return ()
    return resume(folder, device=device, progress=progress).notes


def score(
    folder: Path, split: str, *, weights: str | None = None, device: str, progress: ProgressCallback | None = None
) -> SplitScores:
    """Evaluates a run on a split, also where an evaluation is there already.

    Without `weights` the best ones are evaluated, into the usual `eval-SPLIT/`; with "best" or "last" the files go to
    `eval-SPLIT-WEIGHTS/`.
    """
    out = folder / f"eval-{split}-{weights}" if weights else None
    evaluation = evaluate(folder, split=split, weights=weights or "best", out=out, device=device, progress=progress)
    return SplitScores(evaluation.metrics["brief"], evaluation.folder, evaluation.notes)


def score_unless_done(
    folder: Path, split: str, features: CacheReader, *, device: str, progress: ProgressCallback | None
) -> SplitScores:
    """The scores of an earlier evaluation with these weights, by the run's own rules and for the annotations that it
    was trained with; otherwise those of a new one."""
    stored = _stored_scores(folder, split, features)
    return stored or score(folder, split, device=device, progress=progress)


def _stored_scores(folder: Path, split: str, features: CacheReader) -> SplitScores | None:
    evaluation = folder / f"eval-{split}"
    try:
        last_written = evaluation / "predictions.png"
        if last_written.stat().st_mtime_ns < (folder / "best.safetensors").stat().st_mtime_ns:
            return None
        metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
        rules = metrics["scored"]
        brief = dict(metrics["brief"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged
    run = read_run(folder)
    same_annotations = annotation_digests(features)[split] == run.annotations.get(split)
    own_rules = not rules["official"] and rules["benchmark"] == run.config.data.benchmark
    return SplitScores(brief, evaluation) if brief and same_annotations and own_rules else None


def metrics_and_predictions(
    run: Run, split: str, *, cache: Path, device: str, progress: ProgressCallback
) -> tuple[Mapping[str, Any], list[Prediction]]:
    """The whole metrics and the predictions of a split as they are on disk, by whatever rules they were scored.

    Evaluates the run first where there is no evaluation, where it is damaged or older than the weights. A split without
    labels has the metrics `{"brief": {}}`.
    """
    folder = run.folder / f"eval-{split}"
    weights = run.folder / "best.safetensors"
    try:
        if weights.stat().st_mtime_ns <= (folder / "predictions.jsonl").stat().st_mtime_ns:
            return _read_evaluation(folder)
    except (OSError, ValueError, UsageError):
        pass  # the evaluation below replaces what is missing or damaged
    evaluate(run.folder, split=split, cache=cache, device=device, progress=progress)
    return _read_evaluation(folder)


def _read_evaluation(folder: Path) -> tuple[Mapping[str, Any], list[Prediction]]:
    metrics_file = folder / "metrics.json"
    metrics = json.loads(metrics_file.read_text(encoding="utf-8")) if metrics_file.exists() else {"brief": {}}
    if not isinstance(metrics, dict) or not isinstance(metrics.get("brief"), dict):
        raise ValueError(f"{metrics_file}: no 'brief' numbers in it")
    predictions_file = folder / "predictions.jsonl"
    text = predictions_file.read_text(encoding="utf-8")
    return metrics, parse_predictions(text, str(predictions_file))


def with_stage_prefix(name: str, progress: ProgressCallback | None) -> ProgressCallback | None:
    """A callback that reports every stage as `name: stage`, for one run of several."""
    return progress and (lambda update: progress(replace(update, stage=f"{name}: {update.stage}")))

"""Cross-validation: predictions for the training videos, each by a model that was trained without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from costl.benchmarks.validation_split import hash_of_video
from costl.data.annotations import Prediction, Query, parse_predictions
from costl.metrics.output import write_predictions
from costl.predict.predict import predict_split
from costl.predict.zero_shot_comparison import ZeroShotComparison, compare_with_zero_shot
from costl.training.checkpoint import checkpoint_path
from costl.training.setup import Training
from costl.training.state import fresh_state, load_start, load_state

FOLDS = "folds"  # in the folder of the run
MAX_QUERIES = 1000  # with more, holding out a validation split costs little


def cross_validate(training: Training, train_fold: Callable[[Training, str], None]) -> ZeroShotComparison | None:
    """Compares the model with CLIP alone on the training queries, where there is no split to validate on.

    The videos are divided into `train.folds` parts. For each part, `train_fold(training, name)` trains a model like that of
    the run on the other parts, and this model predicts the part. The predictions are stored in `folds/`, so that an
    interrupted cross-validation goes on. None where it is not wanted, see `_folds`.
    """
    predictions: list[Prediction] = []
    folds = _folds(training)
    for number, held_out in enumerate(folds, 1):
        path = training.run.folder / FOLDS / str(number) / "predictions.jsonl"
        if not path.is_file():
            fold = _open_fold(training, path.parent, held_out)
            train_fold(fold, f"fold {number} of {len(folds)}")
            _write_predictions(fold, held_out, path)
        predictions += parse_predictions(path.read_text(encoding="utf-8"), str(path))
    held_out = [query for fold in folds for query in fold]
    return compare_with_zero_shot(predictions, training.features, held_out, training.config) if folds else None


def divide_by_video(queries: Sequence[Query], folds: int) -> list[list[Query]]:
    """The queries in so many parts; all queries about a video are in one part, and the parts have equally many videos."""
    vids = sorted({query.vid for query in queries}, key=lambda vid: (hash_of_video(vid, 0), vid))
    part_of = {vid: index % folds for index, vid in enumerate(vids)}
    return [[query for query in queries if part_of[query.vid] == part] for part in range(folds)]


def _folds(training: Training) -> list[list[Query]]:
    """The labelled queries of each fold.

    None with a validation split, with more than MAX_QUERIES queries, with fewer than two labelled videos, for features that
    CLIP alone cannot use, and in training with several processes.
    """
    settings = training.config.train
    labelled = [query for query in training.queries if query.windows or query.clip_ids]
    count = min(settings.folds, len({query.vid for query in labelled}))
    is_wanted = settings.select_on == "val" and "val" not in training.splits and len(training.queries) <= MAX_QUERIES
    is_possible = count >= 2 and training.features.joint.is_known and training.state.ranks.world_size == 1
    return divide_by_video(labelled, count) if is_wanted and is_possible else []


def _open_fold(training: Training, folder: Path, held_out: Sequence[Query]) -> Training:
    """A training on all videos but those held out, as it was after its last epoch if it was interrupted."""
    without = {query.vid for query in held_out}
    queries = [query for query in training.queries if query.vid not in without]
    run = replace(training.run, folder=folder)
    state = fresh_state(run.config, training.features, training.state.device)
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint_path(folder, "last").exists():
        load_state(state, folder)
    else:
        load_start(state, run.start.get("model"))
    return Training(run, training.features, {"train": queries}, state)


def _write_predictions(fold: Training, held_out: Sequence[Query], path: Path) -> None:
    """Writes the predictions for the queries held out, then removes the weights, which are not needed any more."""
    state = fold.state
    write_predictions(
        path, predict_split(state.ema_model, held_out, fold.features, config=fold.config, device=state.device)
    )
    for name in ("best", "last"):
        checkpoint_path(path.parent, name).unlink(missing_ok=True)

"""The end of a training: the report, the curves, and the evaluation of the best epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from costl.config import Config
from costl.cross_validation import cross_validate
from costl.data.annotations import parse_predictions
from costl.evaluate import PREDICTIONS, Evaluation, evaluate
from costl.plots.training_curves import draw_curves
from costl.predict.zero_shot_comparison import ZeroShotComparison, compare_with_zero_shot
from costl.training.run_folder import LEGACY, legacy_label, write_summary
from costl.training.setup import Training


@dataclass(frozen=True)
class Report:
    """How training ended, in the folder `run`.

    `score` is the metric `select` on the split `select_on` at `best_epoch`, None without such a split. `legacy` labels a
    choice made on the test split and is empty otherwise. `zero_shot` compares the best epoch with CLIP alone on validation.
    """

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
    zero_shot: ZeroShotComparison | None = None
    exit_code = 0

    def lines(self) -> list[str]:
        """The folder of the run."""
        return [str(self.run)]

    def data(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self) | {"run": str(self.run)}

    def messages(self) -> list[str]:
        """The notes, the number of epochs and the chosen one, and whether the model is better than CLIP alone."""
        split = "test (legacy: chosen on test)" if self.legacy else "validation"
        score = "" if self.score is None else f" with {self.select} {self.score:.1f} on {split}"
        early = ", stopped early" if self.stopped_early else ""
        comparison = [self.zero_shot.message()] if self.zero_shot else []
        kept = f"epoch {self.best_epoch} is" if self.best_epoch else "the weights of the start are"
        return [*self.notes, f"{self.epochs} epochs{early}; {kept} kept{score}.", *comparison]


def finish_training(
    training: Training, rows: Sequence[Mapping[str, Any]], train_fold: Callable[[Training, str], None]
) -> Report:
    """Writes the curves, the evaluation on the split that chose the epoch, and the summary; `rows` has one row an epoch.

    Without a split to validate on, `train_fold` trains the models of the cross-validation.
    """
    state = training.state
    settings = training.config.train
    folder = training.run.folder
    report = Report(
        run=folder,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        select=settings.select,
        score=state.best_score,
        stopped_early=state.epoch < training.epochs,
        seconds=state.seconds,
        notes=tuple(training.notes),
        select_on=settings.select_on,
        legacy=legacy_label(training.config),
    )
    if state.ranks.is_main:
        if rows:
            draw_curves(
                folder / "curves.png", rows, select=settings.select, best_epoch=state.best_epoch, title=folder.name
            )
        if settings.select_on in training.splits:
            evaluation = evaluate(folder, split=settings.select_on, cache=training.features.path, device=str(state.device))
            report = replace(report, zero_shot=_zero_shot(training, evaluation))
        else:
            report = replace(report, zero_shot=cross_validate(training, train_fold))
        write_summary(training.run, report)  # last: without it, resuming makes the files that a kill left out
    return report


def _zero_shot(training: Training, evaluation: Evaluation) -> ZeroShotComparison | None:
    if evaluation.split != "val":  # a choice on the test split must not look at it twice
        return None
    path = evaluation.folder / PREDICTIONS
    predictions = parse_predictions(path.read_text(encoding="utf-8"), str(path))
    return compare_with_zero_shot(predictions, training.features, training.splits["val"], training.config)


def describe_epoch(row: Mapping[str, Any], config: Config) -> str:
    """The line of an epoch for the terminal: its number, weighted loss and validation score."""
    loss = sum(getattr(config.loss, name) * value for name, value in row["losses"].items())
    description = f"epoch {row['epoch']}: loss {loss:.3f}"
    if config.train.select_on not in row:
        return description
    score = row[config.train.select_on][config.train.select]
    legacy = f" ({LEGACY})" if legacy_label(config) else ""
    return f"{description}, {config.train.select} {score:.1f}{legacy}"

"""The end of a training: the report, the curves, and the evaluation of the best epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.config import Config
from costl.evaluate import evaluate
from costl.plots.training_curves import draw_curves
from costl.training.run_folder import LEGACY, legacy_label, write_summary
from costl.training.setup import Training


@dataclass(frozen=True)
class Report:
    """How training ended, in the folder `run`.

    `score` is the metric `select` on the split `select_on` at `best_epoch`, None without such a split. `legacy` labels a
    choice made on the test split and is empty otherwise.
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
    exit_code = 0

    def lines(self) -> list[str]:
        """The folder of the run."""
        return [str(self.run)]

    def data(self) -> dict[str, Any]:
        """Every field."""
        return vars(self) | {"run": str(self.run)}

    def messages(self) -> list[str]:
        """The notes, then the number of epochs and the chosen one."""
        split = "test (legacy: chosen on test)" if self.legacy else "validation"
        score = "" if self.score is None else f" with {self.select} {self.score:.1f} on {split}"
        early = ", stopped early" if self.stopped_early else ""
        return [*self.notes, f"{self.epochs} epochs{early}; epoch {self.best_epoch} is kept{score}."]


def finish_training(training: Training, rows: Sequence[Mapping[str, Any]]) -> Report:
    """Writes the curves, the evaluation on the split that chose the epoch, and the summary; `rows` has one row an epoch."""
    state = training.state
    settings = training.config.train
    folder = training.run.folder
    report = Report(
        run=folder,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        select=settings.select,
        score=state.best_score,
        stopped_early=state.epoch < settings.epochs,
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
            evaluate(folder, split=settings.select_on, cache=training.features.path, device=str(state.device))
        write_summary(training.run, report)  # last: without it, resuming makes the files that a kill left out
    return report


def describe_epoch(row: Mapping[str, Any], config: Config) -> str:
    """The line of an epoch for the terminal: its number, weighted loss and validation score."""
    loss = sum(getattr(config.loss, name) * value for name, value in row["losses"].items())
    description = f"epoch {row['epoch']}: loss {loss:.3f}"
    if config.train.select_on not in row:
        return description
    score = row[config.train.select_on][config.train.select]
    legacy = f" ({LEGACY})" if legacy_label(config) else ""
    return f"{description}, {config.train.select} {score:.1f}{legacy}"

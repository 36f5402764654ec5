"""What a training reports while it runs: the progress of the current epoch, and each epoch's row in TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError
from costl.pipeline.progress import Progress, ProgressCallback, TrainingSpeed
from costl.training.state import TrainingState

REPORT_EVERY_S = 0.2
TENSORBOARD_FOLDER = "tensorboard"


class ProgressReporter:
    """Reports the loss and the speed of the current epoch, a few times a second."""

    def __init__(
        self,
        progress: ProgressCallback,
        state: TrainingState,
        *,
        loss_weights: Mapping[str, float],
        epochs: int,
        queries: int,
    ):
        self._progress = progress
        self._state = state
        self._loss_weights = loss_weights
        self._queries = queries
        self._total = epochs * queries
        self._started_s = time.monotonic()
        self._first_done = -1
        self._next_s = 0.0

    def __call__(self, last_epoch: str, queries_done: int) -> None:
        """`queries_done` of this epoch; `last_epoch` describes the epoch before, empty in the first one."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        done = self._state.epoch * self._queries + queries_done
        if self._first_done < 0:  # an earlier process may have done these: they do not count for the speed of this one
            self._started_s = now_s
            self._first_done = done
        self._next_s = now_s + REPORT_EVERY_S
        per_s = (done - self._first_done) / (now_s - self._started_s) if done > self._first_done else 0.0
        speed = TrainingSpeed(
            epoch=self._state.epoch + 1,
            loss=self._state.epoch_progress.mean(self._loss_weights),
            queries_per_s=per_s,
            left_s=(self._total - done) / per_s if per_s else None,
            before=last_epoch,
        )
        self._progress(Progress("train", done, self._total, last_epoch or "epoch 1", speed=speed))


@contextmanager
def open_tensorboard(run: Path, *, after_epoch: int, enabled: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that writes a row of metrics.jsonl to `tensorboard/` in the run, or nothing unless `enabled`.

    Rows after `after_epoch` that an earlier process wrote are replaced. Raises UsageError when TensorBoard is not
    installed.
    """
    if not enabled:
        yield lambda row: None
        return
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides epochs that an earlier process wrote here and did not save in the run.
    with SummaryWriter(str(run / TENSORBOARD_FOLDER), purge_step=after_epoch + 1) as writer:

        def write_row(row: Mapping[str, Any]) -> None:
            for name, value in flat_numbers(row):
                writer.add_scalar(name, value, row["epoch"])
            writer.flush()

        yield write_row


def check_tensorboard() -> None:
    """Raises UsageError when TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "train.tensorboard is true, but TensorBoard is not installed. Install it with pip install "
            "'costl[tensorboard]', or leave it out: metrics.jsonl and curves.png hold the same numbers."
        ) from error


def flat_numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a row with its path as the name, such as "losses/focal"."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{name}/")
        elif name != "epoch":
            yield f"{prefix}{name}", float(value)

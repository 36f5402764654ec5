"""The rows of metrics.jsonl as TensorBoard shows them, for those who have it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError
from costl.pipeline.progress import Pace, Progress, Tell
from costl.training.state import State

FOLDER = "tensorboard"


@contextmanager
def open_board(run: Path, *, after: int, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Hands out what takes each row after the epoch `after`; it writes to `tensorboard/` in the run, if `wanted`.

    Raises UsageError where TensorBoard is not installed.
    """
    if not wanted:
        yield lambda row: None
        return
    check_board()
    from torch.utils.tensorboard import SummaryWriter

    # An epoch that an earlier process wrote, and did not save, is shown once.
    with SummaryWriter(str(run / FOLDER), purge_step=after + 1) as writer:

        def write(row: Mapping[str, Any]) -> None:
            for name, value in numbers(row):
                writer.add_scalar(name, value, row["epoch"])
            writer.flush()

        yield write


def check_board() -> None:
    """Raises UsageError where TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "train.tensorboard is true, but TensorBoard is not installed. Install it with pip install "
            "'costl[tensorboard]', or leave it out: metrics.jsonl and curves.png hold the same numbers."
        ) from error


def numbers(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a row by its path, as "losses/focal"."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{above}{name}/")
        elif name != "epoch":
            yield f"{above}{name}", float(value)


TELL_EVERY_S = 0.2


class Pacer:
    """Tells a few times a second how the epoch in hand goes."""

    def __init__(self, tell: Tell, state: State, *, weights: Mapping[str, float], epochs: int, queries: int):
        self._tell, self._state, self._weights, self._queries = tell, state, weights, queries
        self._total = epochs * queries
        self._started_s, self._first, self._next_s = time.monotonic(), -1, 0.0

    def __call__(self, before: str, seen: int) -> None:
        """`seen` queries of this epoch are done; `before` is the epoch before, in words."""
        now_s, done = time.monotonic(), self._state.epoch * self._queries + seen
        if now_s < self._next_s:
            return
        if self._first < 0:  # what was done before, by an earlier process, says nothing about the speed of this one
            self._started_s, self._first = now_s, done
        self._next_s = now_s + TELL_EVERY_S
        per_s = (done - self._first) / (now_s - self._started_s) if done > self._first else 0.0
        left_s = (self._total - done) / per_s if per_s else None
        epoch, loss = self._state.epoch + 1, self._state.midway.mean(self._weights)
        pace = Pace(epoch=epoch, loss=loss, queries_per_s=per_s, left_s=left_s, before=before)
        self._tell(Progress("train", done, self._total, before or "epoch 1", flow=pace))

"""The rows of metrics.jsonl as TensorBoard shows them, for those who have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError

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

"""The work of each process in the tests of distributed training: several trainings, one after another, in one group.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python distributed_training.py CACHE FOLDER STOPPED

STOPPED is a run that a single process started. Writes the expected errors to FOLDER/errors-RANK.json, and the threads that
are alive after the process group has ended to FOLDER/threads-RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from costl import train as module
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError
from costl.train import resume, train
from costl.training import objective, report
from costl.training.distributed import Ranks, process_group

SIZE = "train.batch_size=12"
TWO_EPOCHS = "train.epochs=2"
NO_DROPOUT = ("model.dropout=0.0", "model.input_dropout=0.0", "train.splice=0.5", SIZE, TWO_EPOCHS)
# Runs that a single process makes as well. Most batches of six queries are about one video: one process is idle.
COMPARED = {
    "costl": (),
    "cls": ("model.kind=cls", "train.epochs=1"),
    "adapter": ("model.kind=adapter", "train.epochs=1"),
    "uneven": ("train.batch_size=6", "train.epochs=1"),
    "unused weights": ("loss.contrast=0", "loss.iou=0", "loss.saliency=0", "train.epochs=1"),
}


class Stop(Exception):
    """Stops all processes at the same point."""


def work(ranks: Ranks, cache: Path, folder: Path, stopped: Path) -> dict[str, list]:
    """-> by name, the raised error: its type, its message, and whether another process prints it."""
    report.draw_curves = report.evaluate = report._zero_shot = lambda *_, **__: None  # these tests need no pictures
    errors: dict[str, list] = {}

    def run(name: str, *settings: str) -> None:
        train(cache, overrides=settings, out=folder / name, device="cpu", ranks=ranks)

    def refused(name: str, *settings: str) -> None:
        try:
            run(name, *settings)
        except CostlError as error:
            errors[name] = [type(error).__name__, str(error), error.reported]

    for name, changes in COMPARED.items():
        run(name, *NO_DROPOUT, *changes)
    run("dropout", SIZE, TWO_EPOCHS)
    resume(stopped, device="cpu", ranks=ranks)
    stop_after_one_epoch(lambda: run("continued", SIZE, TWO_EPOCHS))
    resume(folder / "continued", device="cpu", ranks=ranks)
    evaluate(folder / "costl", split="test", out=folder / "evaluated", device="cpu", ranks=ranks)
    refused("too-many", "train.batch_size=1")
    refused("costl", *NO_DROPOUT)  # the run exists
    refused("other-settings", f"train.epochs={3 + ranks.rank}")
    with_infinite_loss(lambda: refused("non-finite", SIZE))
    break_reading(on=ranks.rank == 1)
    refused("damaged", SIZE)
    return errors


def stop_after_one_epoch(work) -> None:
    original = module._out_of_patience

    def stop(training):
        if training.state.epoch == 1:
            raise Stop
        return original(training)

    module._out_of_patience = stop
    try:
        work()
    except Stop:
        module._out_of_patience = original


def with_infinite_loss(work) -> None:
    original = objective.total_loss

    def infinite(*args):
        total, parts = original(*args)
        return total * float("inf"), parts

    objective.total_loss = infinite
    work()
    objective.total_loss = original


def break_reading(*, on: bool) -> None:
    def tokens(*_: object, **__: object) -> None:
        raise CacheError("a part is damaged.")

    if on:
        CacheReader.tokens = tokens


def threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


if __name__ == "__main__":
    cache, folder, stopped = map(Path, sys.argv[1:])
    with process_group() as ranks:
        errors = work(ranks, cache, folder, stopped)
    (folder / f"errors-{ranks.rank}.json").write_text(json.dumps(errors))
    (folder / f"threads-{ranks.rank}.json").write_text(json.dumps(threads()))

"""What each process of a shared training does in the tests: several trainings, one after another, in one meeting.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python in_ranks.py CACHE FOLDER [STOPPED]

STOPPED is a run that one process began. What went wrong, as it should, is written to FOLDER/errors-RANK.json, and to
FOLDER/threads-RANK.json which threads are alive when the processes have parted.
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
from costl.training.distributed import Ranks, joined

SIZE = "train.batch_size=32"
STILL = ("model.dropout=0.0", "model.input_dropout=0.0", SIZE)


class Stop(Exception):
    """Where all processes are killed at once."""


def work(ranks: Ranks, cache: Path, folder: Path, stopped: Path) -> dict[str, list]:
    """-> by name, what was raised: its kind, its words, and whether another process says it."""
    module._show = lambda *_, **__: None  # pictures are not what this is about
    errors: dict[str, list] = {}

    def run(name: str, *settings: str) -> None:
        train(cache, overrides=settings, out=folder / name, device="cpu", ranks=ranks)

    def refused(name: str, *settings: str) -> None:
        try:
            run(name, *settings)
        except CostlError as error:
            errors[name] = [type(error).__name__, str(error), error.told]

    run("still", *STILL)
    run("uneven", *STILL, "train.batch_size=6")  # most batches are about one video: one process has nothing to do
    run("dropped", SIZE)
    resume(stopped, device="cpu", ranks=ranks)
    stop_after_one_epoch(lambda: run("continued", SIZE))
    resume(folder / "continued", device="cpu", ranks=ranks)
    evaluate(folder / "still", split="test", out=folder / "evaluated", device="cpu", ranks=ranks)
    refused("too-many", "train.accumulate=2")
    refused("still", *STILL)  # is there already
    refused("of-two-minds", f"train.epochs={3 + ranks.rank}")
    with_infinite_loss(lambda: refused("no-number", SIZE))
    break_reading(on=ranks.rank == 1)
    refused("damaged", SIZE)
    return errors


def stop_after_one_epoch(work) -> None:
    known = module._out_of_patience

    def stop(state, config):
        if state.epoch == 1:
            raise Stop
        return known(state, config)

    module._out_of_patience = stop
    try:
        work()
    except Stop:
        module._out_of_patience = known


def with_infinite_loss(work) -> None:
    known = module.total_loss

    def infinite(*args):
        total, parts = known(*args)
        return total * float("inf"), parts

    module.total_loss = infinite
    work()
    module.total_loss = known


def break_reading(*, on: bool) -> None:
    def tokens(*_: object, **__: object) -> None:
        raise CacheError("a part is damaged.")

    if on:
        CacheReader.tokens = tokens


def threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


if __name__ == "__main__":
    cache, folder, stopped = map(Path, sys.argv[1:])
    with joined() as ranks:
        found = work(ranks, cache, folder, stopped)
    (folder / f"errors-{ranks.rank}.json").write_text(json.dumps(found))
    (folder / f"threads-{ranks.rank}.json").write_text(json.dumps(threads()))

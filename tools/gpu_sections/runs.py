"""`costl extract`, `costl train --resume`, `costl evaluate`, and a training of two processes, on a small sample world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.extract import extract
from costl.pipeline.progress import Progress
from costl.pipeline.world.write_world import WorldSettings, write_sample
from costl.train import resume, train
from costl.training import logging
from costl.training.checkpoint import load_checkpoint
from costl.training.distributed import Ranks, process_group
from gpu_sections.common import Setup, relative_distance

WORLD = WorldSettings(videos={"train": 16, "val": 4}, queries=4, train_queries=8)
TINY_WORLD = WorldSettings(videos={"train": 2, "val": 1}, queries=1, train_queries=3, clips=(12, 12), side=64)
SMALL = ("model.width=32", "model.heads=2", "train.batch_size=3")
NO_DROPOUT = ("model.dropout=0.0", "model.input_dropout=0.0")
MOST_TIMES_NOISE, LEAST_NOISE = 10, 1e-4
MOST_POINTS = 1.0  # of mAP, between a GPU and a CPU
PROCESSES_TOLERANCE = 1e-2


def cache(setup: Setup) -> None:
    """Writes a world, and extracts it."""
    videos = setup.folder / "world"
    write_sample(videos, settings=TINY_WORLD if setup.tiny else WORLD, processes=1 if setup.tiny else -1)
    report = extract(videos, out=_cache(setup), device=str(setup.device), decoder="pyav", workers=1 if setup.tiny else None)
    features = CacheReader(report.cache)
    setup.note(f"{len(features.rows)} videos, precision {features.fingerprint['precision']}.")
    finite = all(np.isfinite(features.tokens(row.name)).all() for row in features.rows)
    setup.checks([("every video was extracted", not report.failed), ("every token is finite", finite)])


def resuming(setup: Setup) -> None:
    """The same training twice, and once interrupted in the middle of its second epoch."""
    settings = ("train.epochs=2", *SMALL) if setup.tiny else ("train.epochs=3",)
    runs = {name: setup.folder / name for name in ("whole", "again", "resumed")}

    def run(name: str, progress: Callable[[Progress], None] | None = None) -> None:
        train(_cache(setup), overrides=settings, out=runs[name], device=str(setup.device), progress=progress)

    run("whole")
    run("again")
    steps = load_checkpoint(runs["whole"], "last")[1]["counts"]["step"]
    with patch.object(logging, "REPORT_EVERY_S", 0.0):  # a report after every batch
        _interrupted(lambda progress: run("resumed", progress), after=0.6)
    stopped = load_checkpoint(runs["resumed"], "last")[1]["counts"]["step"]
    resume(runs["resumed"], device=str(setup.device))
    noise, distance = (_distance(runs["whole"], runs[name]) for name in ("again", "resumed"))
    setup.table("", "distance of the weights", "steps")
    setup.row("two uninterrupted runs", f"{noise:.1e}", steps)
    setup.row("an uninterrupted and a resumed run", f"{distance:.1e}", f"{stopped}, then {steps - stopped}")
    most = max(MOST_TIMES_NOISE * noise, LEAST_NOISE if setup.on_gpu else 0.0)
    setup.checks([("the run was interrupted", 0 < stopped < steps), ("the resumed run is as close", distance <= most)])
    _check_evaluation(setup, runs["resumed"])


def _interrupted(run: Callable[[Callable[[Progress], None]], None], *, after: float) -> None:
    """Interrupts a training when this share of it is done."""

    def stop(progress: Progress) -> None:
        if progress.stage == "train" and progress.done >= after * progress.total:
            raise KeyboardInterrupt

    try:
        run(stop)
    except KeyboardInterrupt:
        return
    raise AssertionError("the training was not interrupted")


def _check_evaluation(setup: Setup, run: Path) -> None:
    scores = [
        evaluate(run, split="val", out=setup.folder / f"eval-{device}", device=device).metrics["brief"]["MR-full-mAP"]
        for device in (str(setup.device), "cpu")
    ]
    setup.checks([(f"mAP {scores[0]:.2f} here and {scores[1]:.2f} on a CPU", abs(scores[0] - scores[1]) <= MOST_POINTS)])


class OneGpu(Ranks):
    """Processes that share one GPU, which `costl train` refuses. They talk through gloo, the default group."""

    def device(self, name: str) -> str:
        """The same GPU for each."""
        return name

    def for_device(self, device: torch.device) -> Ranks:
        """Itself."""
        return self


def two_processes(setup: Setup) -> None:
    """Runs in both processes. The first one then trains alone, and writes the lines."""
    settings = (*NO_DROPOUT, "train.epochs=1", "train.precision=float32", *(SMALL if setup.tiny else ()))
    options = {"overrides": settings, "device": str(setup.device)}
    with process_group() as ranks:
        both = train(_cache(setup), out=setup.folder / "two", ranks=OneGpu(**vars(ranks)), **options)
    if not ranks.is_main:
        return
    alone = train(_cache(setup), out=setup.folder / "alone", **options)
    setup.table("processes", "seconds of training")
    setup.row(1, f"{alone.seconds:.1f}")
    setup.row(2, f"{both.seconds:.1f}")
    distance = _distance(alone.run, both.run)
    statement = f"the weights differ by {distance:.1e}, less than {PROCESSES_TOLERANCE:g}"
    setup.checks([(statement, distance < PROCESSES_TOLERANCE)])


def _cache(setup: Setup) -> Path:
    return setup.folder / "world.h5"


def _distance(*runs: Path) -> float:
    """The distance of the weights after the last step of two runs."""
    weights = [load_checkpoint(run, "last")[0] for run in runs]
    return relative_distance(*(torch.cat([tensor.float().flatten() for tensor in of_run.values()]) for of_run in weights))

"""`costl train`: trains the model on a cache, or resumes an interrupted training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from costl.commands.options import ANY_PATH, FOLDER, as_json, config_files, device, out, overrides, quiet
from costl.commands.output import print_result
from costl.commands.progress_bars import ProgressBars
from costl.pipeline.progress import ProgressCallback
from costl.training.launch import read_launch

if TYPE_CHECKING:
    from costl.train import Report


@click.command()
@click.option("--cache", type=ANY_PATH, help="The cache that costl extract wrote.")
@config_files
@overrides
@out("Folder of the run.  [default: a new one in runs/]", type=FOLDER)
@click.option("--resume", "run", type=FOLDER, help="Continue this interrupted run with its own settings.")
@device
@quiet
@as_json
def train(as_json: bool, quiet: bool, **options: Any) -> None:
    """Train the model on a cache, and print the folder of the run.

    \b
    Examples:
        costl train --cache feats.h5
        costl train --cache feats.h5 --set train.epochs=20 --set spatial.steps=0
        costl train --resume runs/feats-20260131-120000
        torchrun --standalone --nproc_per_node=2 -m costl train --cache feats.h5

    Settings come from configs/default.yaml, then from the videos' costl.yaml, then from --config, then from --set.
    Ctrl-C and SIGTERM save every step, and --resume continues from there; on a CPU the result is the same to the last bit.
    torchrun splits every batch between GPUs, or between processes on a CPU, with the same result. If a GPU waits for data
    (`waiting` in metrics.jsonl), set train.workers. train.precision is half precision on a GPU by default.
    train.bucket_batches=8 saves padding where videos differ in length. train.tensorboard=true writes for TensorBoard, too.
    """
    with ProgressBars(silent=quiet) as progress:
        report = _start_or_resume(**options, progress=progress)
    if read_launch().is_main:
        print_result(report, as_json=as_json)


def _start_or_resume(
    *, cache: Path | None, run: Path | None, device: str, progress: ProgressCallback, **changes: Any
) -> Report:
    from costl.config import load_config

    if run is not None and any(changes.values()):
        raise click.UsageError("--resume uses the run's own settings. Leave out --config, --set and --out.")
    if run is None and cache is None:
        raise click.UsageError("Missing option '--cache', for example: costl train --cache feats.h5")
    if read_launch().world_size == 1:  # with several processes, each would print the errors
        load_config(*changes["config"], overrides=changes["overrides"])  # reports errors before torch is loaded
    from costl.train import resume, train
    from costl.training.distributed import process_group

    with process_group() as ranks:
        if run is not None:
            return resume(run, cache=cache, device=device, progress=progress, ranks=ranks)
        assert cache is not None, "checked above: without --resume there is a cache"
        return train(cache, device=device, progress=progress, ranks=ranks, **changes)

"""`costl train`: trains the model on a cache, or resumes an interrupted training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.early import check_resumed, check_training
from costl.commands.options import ANY_PATH, FOLDER, as_json, config_files, device, out, overrides, quiet
from costl.commands.output import print_result
from costl.commands.progress_bars import ProgressBars


@click.command()
@click.option("--cache", type=ANY_PATH, help="The cache that costl extract wrote.")
@config_files
@overrides
@out("Folder of the run.  [default: a new one in runs/]", type=FOLDER)
@click.option("--resume", "run", type=FOLDER, help="Continue this interrupted run with its own settings.")
@click.option(
    "--start-from", metavar="MODEL", help="Start with the weights of this trained model: a run, an export, hf://user/name."
)
@device
@quiet
@as_json
def train(cache: Path | None, run: Path | None, device: str, as_json: bool, quiet: bool, **changes: Any) -> None:
    """Train a model on the features of a cache.

    \b
    Examples:
        costl train --cache feats.h5
        costl train --cache feats.h5 --set train.epochs=20 --set spatial.steps=0
        costl train --cache mine.h5 --start-from runs/qvhighlights
        costl train --resume runs/feats-20260131-120000
        torchrun --standalone --nproc_per_node=2 -m costl train --cache feats.h5

    Prints the folder of the run. Settings come from the defaults, the videos' costl.yaml, --config and --set; later
    ones win. After Ctrl-C or SIGTERM no finished step is lost: --resume continues from there. torchrun divides every
    batch between GPUs, or between processes on a CPU. docs/train-on-my-own-videos.md explains the settings, and
    config.yaml in the folder of the run lists all of them.
    """
    if run is not None and any(changes.values()):
        raise click.UsageError("--resume uses the run's own settings. Leave out --config, --set, --start-from and --out.")
    if run is None and cache is None:
        raise click.UsageError("Missing option '--cache', for example: costl train --cache feats.h5")
    if run is not None:
        check_resumed(run, cache)
    elif cache is not None:
        check_training(cache, changes["config"], changes["overrides"], start_from=changes["start_from"])
    from costl.train import resume, train
    from costl.training.distributed import process_group

    with ProgressBars(silent=quiet) as progress, process_group() as ranks:
        if run is not None:
            report = resume(run, cache=cache, device=device, progress=progress, ranks=ranks)
        else:
            assert cache is not None, "checked above"
            report = train(cache, device=device, progress=progress, ranks=ranks, **changes)
    if ranks.is_main:
        print_result(report, as_json=as_json)

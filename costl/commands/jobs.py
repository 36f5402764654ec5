"""`costl quickstart` runs all stages on a sample world; `costl prepare` converts a benchmark's official annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.options import (
    ANY_PATH,
    FOLDER,
    as_json,
    device,
    out,
    overrides,
    quiet,
    world,
    world_settings,
)
from costl.commands.progress_bars import run_and_print


@click.command()
@out("Folder to work in.", type=FOLDER, default="costl-quickstart", show_default=True)
@world
@overrides
@device
@quiet
@as_json
def quickstart(out: Path, overrides: tuple[str, ...], device: str, quiet: bool, as_json: bool, **world: Any) -> None:
    """Try all stages on drawn sample videos.

    \b
    Example:
        costl quickstart

    Prints the scores of CoSTL, of CoSTL without its spatial encoder, of zero-shot CLIP and of chance. If it was
    interrupted, the same command continues.
    """
    from costl.experiments.quickstart import quickstart

    run_and_print(
        quickstart,
        quiet=quiet,
        as_json=as_json,
        folder=out,
        world=world_settings(**world),
        overrides=overrides,
        device=device,
    )


@click.command()
@click.argument("name")
@click.option("--annotations", required=True, type=ANY_PATH, help="Folder of the official files, or one of them.")
@click.option("--videos", type=FOLDER, help="Folder of the videos.")
@out("Folder to write.", type=FOLDER, required=True)
@click.option("--allow-missing-videos", is_flag=True, help="Also write the rows of videos that are missing.")
@click.option(
    "--val-share",
    type=float,
    help="Share of the training videos to hold out if there is no validation split.  [default: 0.1, tvsum 0]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of held-out videos.")
@quiet
@as_json
def prepare(**options: Any) -> None:
    """Convert a benchmark's annotations to JSONL files.

    NAME is qvhighlights, charades, tacos, tvsum or youtube-highlights.

    \b
    Example:
        costl prepare charades --annotations Charades-STA/ --videos Charades_v1/ --out charades/
        costl extract --videos Charades_v1/ --annotations charades/ --out charades.h5

    Writes train.jsonl, val.jsonl, test.jsonl and the benchmark's settings. Prints the number of rows, videos and windows of
    each split, every correction of the annotations, and the next command.
    """
    from costl.benchmarks.prepare import prepare

    run_and_print(prepare, **options)

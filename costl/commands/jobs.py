"""`costl quickstart` runs all stages on a sample world; `costl prepare` converts labels, a user's or a benchmark's."""

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
@click.argument("name", metavar="NAME|PATH")
@click.option("--annotations", type=ANY_PATH, help="Of a benchmark: the folder of the official files, or one of them.")
@click.option("--videos", type=FOLDER, help="Folder of the videos.")
@out("Folder to write.", type=FOLDER, required=True)
@click.option("--allow-missing-videos", is_flag=True, help="Also write the rows of videos that are missing.")
@click.option(
    "--val-share",
    type=float,
    help="Share of the videos for validation if there is no such split; of your own labels as many again for the test.  "
    "[default: 0.1, tvsum 0, own labels 0.15]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of these videos.")
@click.option("--frame-rate", metavar="RATE", help="Frames a second at which your labels count.  [default: that of each video]")
@quiet
@as_json
def prepare(**options: Any) -> None:
    """Convert labels, yours or a benchmark's, to JSONL files.

    \b
    Your own labels, by the path of a file or a folder:
        costl prepare labels.csv --videos Videos/ --out labels/
        costl extract --videos Videos/ --annotations labels/
    A benchmark, by its name (qvhighlights, charades, tacos, tvsum or youtube-highlights):
        costl prepare charades --annotations Charades-STA/ --videos Charades_v1/ --out charades/

    A table (.csv, .tsv) has a row for each moment, with the columns video, start, end and text, and if you like split and
    rating (0 to 4). Times are seconds or hh:mm:ss.mmm. Other names of columns are guessed, and the guess is printed. Also
    read: exports of Label Studio (JSON, TimelineLabels), subtitles (.vtt, .srt), ActivityNet Captions, DiDeMo, TVR, Ego4D
    and QVHighlights.

    Writes train.jsonl, val.jsonl, test.jsonl and a report. Prints the number of rows, videos and windows of each split, every
    correction, and the next command. Where something is wrong, nothing is written.
    """
    from costl.converters.prepare import prepare

    run_and_print(prepare, **options)

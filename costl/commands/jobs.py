"""`costl quickstart` and `costl reproduce` run all stages, on a sample world or a benchmark; `costl prepare` converts labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.options import (
    ANY_PATH,
    AT_LEAST_ONE,
    FOLDER,
    as_json,
    device,
    named_folders,
    out,
    overrides,
    paper_table,
    published_features,
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
@click.option("--annotations", type=ANY_PATH, required=True, help="Folder of the official annotation files.")
@click.option("--videos", type=FOLDER, help="Folder of the videos.")
@published_features(required=False)
@click.option("--seeds", type=AT_LEAST_ONE, default=5, show_default=True, help="Number of trainings, with seeds 0, 1, 2, ...")
@out("Folder to work in.  [default: reproduce-NAME]", type=FOLDER)
@click.option("--allow-missing-videos", is_flag=True, help="Continue without missing or broken videos; their queries score 0.")
@click.option("--model", help="An open_clip model.  [default: ViT-B-32]")
@click.option("--weights", help="A tag, a file, or a folder.  [default: openai]")
@click.option("--dtype", metavar="NAME", help="float16, or int8 with half the size.  [default: float16]")
@overrides
@device
@quiet
@as_json
@paper_table
def reproduce(streams: tuple[str, ...], **options: Any) -> None:
    """Run a benchmark: from its files to a table for a paper.

    \b
    Examples:
        costl reproduce charades --videos Charades_v1/ --annotations Charades-STA/
        costl reproduce qvhighlights --annotations official/ --features slowfast=slowfast_features \\
            --features clip=clip_features --joint clip --text clip_text_features

    NAME is qvhighlights, charades, tacos, tvsum or youtube-highlights. Prepares, extracts, trains with several seeds and
    evaluates on the test split, by the rules of the published evaluator. First measures on a few videos how long that takes
    and how much disk it needs. If it was interrupted, the same command continues.

    Writes table.md, table.tex, table.csv: mean and standard deviation next to published numbers, bootstrap intervals, and a
    paragraph of methods. costl study compare A/ B/ tests the difference of two such folders.
    """
    from costl.reproduce.reproduce import reproduce

    run_and_print(reproduce, features=named_folders(streams), **options)


@click.command()
@click.argument("name", metavar="NAME|PATH")
@click.option("--annotations", type=ANY_PATH, help="Of a benchmark: the folder of the official files, or one of them.")
@click.option("--videos", type=FOLDER, help="Folder of the videos.")
@out("Folder to write.", type=FOLDER, required=True)
@click.option("--allow-missing-videos", is_flag=True, help="Also write the rows of videos that are missing.")
@click.option(
    "--val-share",
    type=float,
    help="Share of the videos for validation if there is no such split; of your own labels the same share is also kept "
    "for the test.  [default: 0.1, tvsum 0, own labels 0.15]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of these videos.")
@click.option("--frame-rate", metavar="RATE", help="Frame rate of labels that count frames.  [default: that of each video]")
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

"""Ask videos: `costl predict` on the terminal, `demo` and `label` in a browser, `costl report` about a whole run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from costl.ask.formats import FORMATS
from costl.commands.early import check_run
from costl.commands.options import ANY_PATH, FOLDER, as_json, device, out, overwrite, quiet, run_cache, trained_model
from costl.commands.output import print_messages
from costl.commands.progress_bars import ProgressBars, run_and_print


@click.command()
@click.argument("arguments", nargs=-1, metavar="VIDEO... QUERY...")
@trained_model
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Number of moments for each query.")
@click.option("--all", "show_all", is_flag=True, help="Also show, in grey, moments whose score is too low for an answer.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    metavar="NAME",
    help="table, json, jsonl, csv, or subtitles as srt or vtt.  [default: that of the file's name, or table]",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@out("Write to this file instead of standard output.")
@click.option("--cut", "cut_folder", type=FOLDER, help="Write each moment found as a video file into this folder.")
@click.option("--picture", type=ANY_PATH, help="Draw frames, moments and saliency into this PNG file.")
@overwrite
@quiet
def predict(
    arguments: tuple[str, ...],
    model: str | None,
    weights: str | None,
    cache_dir: Path | None,
    device: str,
    top: int,
    output_format: str | None,
    as_json: bool,
    quiet: bool,
    overwrite: bool,
    show_all: bool,
    **outputs: Path | None,
) -> None:
    """Find the moments in videos that match sentences.

    \b
    Examples:
        costl predict holiday.mp4 "a dog catches a ball"
        costl predict *.mp4 "a dog catches a ball" "a child swings" --format jsonl --out moments.jsonl
        costl predict holiday.mp4 "a dog catches a ball" --top 3 --cut moments/ --picture moments.png

    Without a trained model, CLIP answers alone (zero-shot). Videos can have any length. An argument that is an existing
    file is a video, and any other argument is a query. The features of a video are stored in --cache-dir, and later queries
    reuse them.

    Exit code 1: some videos could not be read.
    """
    videos, queries = _videos_and_queries(arguments)
    if not videos:
        raise click.UsageError('no video. Name a file, for example: costl predict holiday.mp4 "a dog catches a ball"')
    from costl.ask.answer import check_queries
    from costl.ask.formats import check_format, choose_format, refuse_outputs
    from costl.ask.model_folder import model_or_zero_shot

    check_queries(queries)  # reports errors before torch is loaded
    output_format = choose_format("json" if as_json else output_format, outputs["out"])
    check_format(output_format, videos)
    # Without --overwrite, no file of a model is taken for an earlier output.
    read = [*videos, *(Path(model or "runs").rglob("*.json") if overwrite else ())]
    refuse_outputs(outputs["out"], outputs["picture"], inputs=read, overwrite=overwrite)
    folder = model_or_zero_shot(model)
    from costl.ask.asker import load
    from costl.ask.output import ask_videos, write_answers

    asker = load(folder, weights=weights, cache_dir=cache_dir, device=device)
    with ProgressBars(silent=quiet) as progress:
        answers, failures = ask_videos(asker, videos, queries, top=top, progress=progress)
    # A new progress bar: the text is printed before the moments are cut, so that a full disk does not lose the answers.
    with ProgressBars(silent=quiet) as progress:
        files = write_answers(
            answers,
            output_format=output_format,
            overwrite=overwrite,
            show_all=show_all,
            print_text=lambda text: click.echo(text, nl=False),
            progress=progress,
            **outputs,
        )
    print_messages(*(f"failed: {reason}" for reason in failures), *(f"Written: {path}" for path in files))
    if failures:
        raise SystemExit(1)


def _videos_and_queries(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Splits the arguments: existing files are videos. Raises UsageError for a folder, and for a video that does not exist."""
    from costl.pipeline.videos import SUFFIXES

    videos = [Path(text) for text in arguments if os.path.isfile(text)]
    queries = [text for text in arguments if not os.path.isfile(text)]
    for text in queries:
        if os.path.isdir(text):
            raise click.UsageError(f"{text}: a folder. Name the videos in it, such as {os.path.join(text, '*.mp4')}")
        if Path(text).suffix.lower() in SUFFIXES:
            raise click.UsageError(f"{text}: no such file. Check the name of the video.")
    return videos, queries


@click.command()
@click.option("--videos", type=FOLDER, help="Folder of videos to search, with the folders in it.")
@trained_model
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes any free port.")
def demo(model: str | None, **options: Any) -> None:
    """Ask about videos in the browser: a folder of them, or one.

    \b
    Example:
        costl demo --videos dir/

    With --videos the first page finds moments in all videos of the folder, with the model that costl search uses. It indexes
    the folder meanwhile; you can stop that and go on later. The page about one video takes uploads too, and shows the moments
    and the saliency curve. Serves only 127.0.0.1, until Ctrl-C, and sends nothing elsewhere. Needs the extra: pip install
    'costl[demo]'
    """
    from costl.ask.model_folder import model_or_zero_shot

    folder = model_or_zero_shot(model)  # reports errors before torch is loaded
    from costl.demo.app import demo

    demo(folder, **options, search_run=model, on_ready=click.echo)


@click.command()
@click.option("--videos", type=FOLDER, required=True, help="Folder of videos to label, with the folders in it.")
@out("File of the labels.  [default: labels.jsonl in the folder]")
@click.option("--run", metavar="MODEL", help="Trained model that proposes moments (see predict).  [default: CLIP alone]")
@click.option("--weights", help="Weights of CLIP for a new index: a tag, a file or a folder.")
@device
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes any free port.")
def label(videos: Path, run: str | None, **options: Any) -> None:
    """Label moments of your videos in the browser.

    \b
    Example:
        costl label --videos dir/

    Made for the keyboard: play, set the ends of a moment, type its sentence; ? shows all keys. It also indexes the folder in
    the background, and then proposes the moments that a search finds. Every change is on the disk before the page shows it
    as saved. Ctrl-C ends it, writes the labels as JSONL, and prints the next command. Serves only 127.0.0.1, and sends
    nothing elsewhere. Needs the extra: pip install 'costl[demo]'
    """
    from costl.ask.model_folder import model_or_zero_shot
    from costl.pipeline.videos import list_videos

    list_videos(videos)  # reports errors before torch is loaded
    folder = None if run is None else model_or_zero_shot(run)
    from costl.label.app import label

    label(videos, run=folder, **options, on_ready=click.echo, on_close=click.echo)


@click.command()
@click.argument("run", type=FOLDER, required=False)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Split of the annotations: train, val, test, or another one such as test_unseen.",
)
@out("File to write.  [default: report-SPLIT.html in the run]")
@overwrite
@click.option("--videos", type=FOLDER, help="Folder of the videos, if they have moved since extraction.")
@click.option("--detailed", type=int, default=40, show_default=True, help="Queries that get pictures and attention maps.")
@run_cache
@device
@quiet
@as_json
def report(**options: Any) -> None:
    """Write an HTML report about a trained model.

    \b
    Examples:
        costl report runs/feats-20260131-120000
        costl report --split val --out val.html

    Writes one file with scores, training curves, all queries and attention maps. It can be opened without a network. RUN
    is by default the newest in runs/.
    """
    check_run(options["run"], cache=options["cache"], splits=[options["split"]])
    from costl.report.build import report

    run_and_print(report, **options)

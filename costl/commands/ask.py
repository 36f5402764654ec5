"""Ask a trained model: `costl predict` on the terminal, `costl demo` in a browser, `costl report` about a whole run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from costl.ask.answer import FORMATS
from costl.commands.options import ANY_PATH, FOLDER, as_json, device, one_model, out, quiet, trained_model
from costl.commands.output import say, show
from costl.commands.progress import Bars


@click.command()
@click.argument("words", nargs=-1, metavar="VIDEO... QUERY...")
@click.option("--video", "videos", multiple=True, type=ANY_PATH, help="A video, whatever its name. Repeatable.")
@click.option("--query", "queries", multiple=True, help="A query, even if it is the name of a file. Repeatable.")
@trained_model
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Moments to show of each answer.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    metavar="NAME",
    help="table, json, jsonl, csv, or subtitles as srt or vtt.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@out("Write to this file instead of standard output.")
@click.option("--cut", "clips", type=FOLDER, help="Write the moments shown as video clips into this folder.")
@click.option("--picture", type=ANY_PATH, help="Draw the answers into this PNG: frames, moments, saliency.")
@quiet
def predict(words: tuple[str, ...], videos: tuple[Path, ...], queries: tuple[str, ...], **options: Any) -> None:
    """Find the moments of videos that sentences describe.

    \b
    Examples:
        costl predict holiday.mp4 "a dog catches a ball"
        costl predict *.mp4 "a dog catches a ball" "people laugh" --format jsonl --out found.jsonl
        costl predict holiday.mp4 "a dog catches a ball" --top 3 --cut clips/ --picture found.png

    Needs no annotations, and takes videos of any length. An argument that is an existing file is a video, and anything
    else is a query. The features of a video are stored in --cache-dir by its content, so that the next query about it is
    answered at once.

    Exit code 1: some videos could not be used.
    """
    more_videos, more_queries = _videos_and_queries(words)
    raise SystemExit(_predict([*videos, *more_videos], [*queries, *more_queries], **options))


def _videos_and_queries(words: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Splits the arguments. One that looks like a video but is not a file would be a strange query, and is refused."""
    from costl.pipeline.videos import SUFFIXES

    videos: list[Path] = []
    queries: list[str] = []
    for word in words:
        path = Path(word)
        if word and path.is_file():
            videos.append(path)
        elif path.suffix.lower() in SUFFIXES:
            raise click.UsageError(f"{word}: no such file. Check the name, or pass it with --query if it is a query.")
        elif word.endswith(("/", "\\")) and path.is_dir():
            raise click.UsageError(f"{word}: a folder. Name the videos in it, such as {word}*.mp4")
        else:
            queries.append(word)
    return videos, queries


def _predict(
    videos: list[Path],
    queries: list[str],
    *,
    run: Path | None,
    model: str | None,
    weights: str | None,
    cache_dir: Path | None,
    device: str,
    top: int,
    form: str,
    as_json: bool,
    quiet: bool,
    **outputs: Path | None,
) -> int:
    if not videos:
        raise click.UsageError('no video. Name a file, for example: costl predict holiday.mp4 "a dog catches a ball"')
    form = "json" if as_json else form
    from costl.ask.answer import check_form, check_queries  # before torch is loaded

    check_queries(queries)
    check_form(form, videos)
    from costl.ask.asker import load
    from costl.ask.output import ask_all, write_told

    asker = load(one_model(run, model), weights=weights, cache_dir=cache_dir, device=device)
    with Bars(silent=quiet) as progress:
        told = ask_all(asker, videos, queries, top=top, progress=progress)
    # The text is printed before clips are cut, so that a full disk does not cost the answers.
    with Bars(silent=quiet) as progress:
        files = write_told(told.answers, form=form, write=_print_text, progress=progress, **outputs)
    say(*(f"failed: {reason}" for reason in told.failed), *(f"Written: {path}" for path in files))
    return 1 if told.failed else 0


def _print_text(text: str) -> None:
    click.echo(text, nl=False)


@click.command()
@click.option("--videos", type=FOLDER, help="A folder of videos to choose from.")
@trained_model
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes any free port.")
@click.option("--max-mb", type=click.IntRange(min=1), default=2048, show_default=True, help="Largest upload.")
@click.option("--max-minutes", type=click.IntRange(min=1), default=180, show_default=True, help="Longest video.")
def demo(run: Path | None, model: str | None, **options: Any) -> None:
    """Ask about videos in the browser.

    \b
    Example:
        costl demo --videos dir/

    Shows moments to jump to, the saliency curve, and where the model looked. Serves only 127.0.0.1, until Ctrl-C, and
    sends nothing elsewhere. Needs the extra: pip install 'costl[demo]'
    """
    from costl.demo.app import demo

    demo(one_model(run, model), **options, ready=click.echo)


@click.command()
@click.argument("run", type=FOLDER, required=False)
@click.option(
    "--split", default="test", show_default=True, help="Split of the annotations: train, val, test or test_*."
)
@out("The file to write.  [default: report-SPLIT.html in the run]")
@click.option("--videos", type=FOLDER, help="Folder of the videos, if they have moved since extraction.")
@click.option("--detailed", type=int, default=40, show_default=True, help="Queries with timelines, pictures and maps.")
@click.option("--cache", type=ANY_PATH, help="The run's cache, if it has moved.")
@device
@quiet
@as_json
def report(as_json: bool, quiet: bool, **options: Any) -> None:
    """Write an HTML report about the predictions of a run.

    \b
    Examples:
        costl report runs/feats-20260131-120000
        costl report --split val --out val.html

    One file with numbers, curves, every query, and where the model looked. RUN is by default the newest in runs/. The file
    needs no network; open it by a double click.
    """
    from costl.report.build import report

    with Bars(silent=quiet) as progress:
        written = report(**options, progress=progress)
    show(written, as_json=as_json)

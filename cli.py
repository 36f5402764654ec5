"""The `costl` command: parse, call, print, exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from costl.answers import FORMATS
from pipeline.errors import CostlError
from pipeline.progress import Progress, Tell

if TYPE_CHECKING:
    from costl.train import Report
    from pipeline.cache import VideoRow
    from pipeline.extract import ExtractReport

INTERRUPTED = 130

FOLDER = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
device = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting of training, as train.epochs=20. Repeatable.",
)


TRAINED = (
    click.option("--run", type=FOLDER, help="Folder of a run.  [default: the newest in runs/]"),
    click.option("--model", help="Folder that costl export wrote, or hf://user/name, in place of a run."),
    click.option("--weights", help="Where the model's CLIP is now, if not where it was."),
    click.option(
        "--cache-dir", type=FOLDER, help="Where features of asked videos are kept.  [default: the user's cache]"
    ),
    device,
)


def trained(command: Any) -> Any:
    """Gives a command the choice of a trained model."""
    for option in reversed(TRAINED):
        command = option(command)
    return command


WORLD = (
    click.option("--videos", "counts", multiple=True, metavar="SPLIT=N", help="Videos of a split. Repeatable."),
    click.option("--queries", type=int, help="Queries a video."),
    click.option("--clips", type=(int, int), help="Fewest and most clips of a video, two seconds each."),
    click.option("--side", type=int, help="Side of the picture in pixels."),
    click.option("--seed", type=int, help="Another seed: another world."),
    click.option("--hard", is_flag=True, default=None, help="More things on screen, more alike."),
)


def world_options(command: Any) -> Any:
    """Gives a command the size and difficulty of a sample world."""
    for option in reversed(WORLD):
        command = option(command)
    return command


class Commands(click.Group):
    """Turns what a command raises into one sentence on standard error and the exit code that belongs to it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except CostlError as error:
            say(f"Error: {error}")
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("Interrupted. What was finished is kept; the same command goes on from there (train: with --resume).")
            ctx.exit(INTERRUPTED)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used, not of the alphabet."""
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="costl")
def main() -> None:
    """Finds the moments of a video that a sentence describes, and rates every two seconds of it.

    \b
    Everything at once, on a small made-up world:
        costl quickstart
    On your own videos, with train.jsonl, val.jsonl and test.jsonl beside them:
        costl extract --videos dir/
        costl train --cache feats.h5
        costl evaluate --split test
    """
    signal.signal(signal.SIGTERM, _interrupt)


@main.command()
@click.option("--videos", required=True, type=ANY_PATH, help="A folder of videos, or one video.")
@click.option("--out", default="feats.h5", show_default=True, type=ANY_PATH, help="The cache to write or complete.")
@click.option(
    "--annotations", type=ANY_PATH, help="Folder or file of annotations, where they are not beside the videos."
)
@click.option("--model", help="Name of an open_clip model.  [default: ViT-B-32]")
@click.option("--weights", help="An open_clip tag, a file, or a folder in open_clip's layout.  [default: openai]")
@click.option("--fps", type=float, help="Clips a second.  [default: 0.5]")
@click.option("--workers", type=int, help="Decode processes.  [default: one a core]")
@click.option("--batch", type=int, help="Frames encoded at once.")
@device
@as_json
def extract(as_json: bool, **options: Any) -> None:
    """Videos in, features out: runs once, and again only for what is missing.

    \b
    Example:
        costl extract --videos dir/
    writes ./feats.h5 and ./feats.h5.parts/. A costl.yaml in the folder may set model, weights and fps.
    Exit code 1: finished, but some videos failed (costl status feats.h5 says why).
    """
    from pipeline.extract import extract

    with Bars() as show:
        report = extract(**options, progress=show)
    _tell_extraction(report, as_json=as_json)
    raise SystemExit(report.exit_code)


@main.command()
@click.option("--cache", type=ANY_PATH, help="What costl extract wrote.")
@click.option(
    "--config", "config", type=ANY_PATH, multiple=True, help="YAML that names only what it changes. Repeatable."
)
@overrides
@click.option("--out", type=FOLDER, help="Folder of the run.  [default: a new one in runs/]")
@click.option("--resume", "run", type=FOLDER, help="Continue this interrupted run, with its own settings.")
@device
@as_json
def train(as_json: bool, **options: Any) -> None:
    """Trains CoSTL from a cache; prints the run's folder.

    \b
    Examples:
        costl train --cache feats.h5
        costl train --cache feats.h5 --set train.epochs=20 --set spatial.steps=0
        costl train --resume runs/feats-20260131-120000
    Settings: configs/default.yaml, then those that came with the videos, then --config, then --set.
    """
    with Bars() as show:
        report = _start_or_resume(**options, progress=show)
    _tell_training(report, as_json=as_json)


@main.command()
@click.option("--split", default="test", show_default=True, help="Which annotations: train, val, test, test_*.")
@click.option("--run", type=FOLDER, help="Folder of the run.  [default: the newest in runs/]")
@click.option("--cache", type=ANY_PATH, help="The run's cache, if it has moved.")
@click.option("--official", is_flag=True, help="The published QVHighlights evaluator, to the last digit.")
@click.option("--out", type=FOLDER, help="Where to write.  [default: eval-SPLIT/ in the run]")
@device
@as_json
def evaluate(as_json: bool, **options: Any) -> None:
    """Scores a trained run on a split; prints the table and writes predictions, metrics and a picture.

    \b
    Example:
        costl evaluate --split test
    """
    from costl.evaluate import evaluate
    from costl.export import metrics_table

    with Bars() as show:
        found = evaluate(**options, progress=show)
    click.echo(json.dumps(found.metrics, indent=2) if as_json else metrics_table(found.metrics))
    say(*found.notes, f"Predictions, metrics and a picture: {found.folder}/")


@main.command()
@click.argument("words", nargs=-1, metavar="VIDEO... QUERY...")
@click.option("--video", "videos", multiple=True, type=ANY_PATH, help="A video, whatever its name. Repeatable.")
@click.option("--query", "queries", multiple=True, help="A query, even one that is called like a file. Repeatable.")
@trained
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Moments to show of each answer.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True, help="srt, vtt: subtitles."
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", type=ANY_PATH, help="Write there instead of to standard output.")
@click.option("--cut", "clips", type=FOLDER, help="Write the moments shown as video clips into this folder.")
@click.option("--picture", type=ANY_PATH, help="Draw the answers into this PNG: frames, moments, saliency.")
def predict(words: tuple[str, ...], videos: tuple[Path, ...], queries: tuple[str, ...], **options: Any) -> None:
    """Asks videos where something is to be seen, and how well every clip shows it: no annotation, any length.

    \b
    Examples:
        costl predict holiday.mp4 "a dog catches a ball"
        costl predict *.mp4 "a dog catches a ball" "people laugh" --format jsonl --out found.jsonl
        costl predict holiday.mp4 "a dog catches a ball" --top 3 --cut clips/ --picture found.png
    An argument that is an existing file is a video, anything else a query. Features are kept by content (--cache-dir), so
    that a second question about the same video is answered at once. Exit code 1: some videos could not be used.
    """
    found, asked = _videos_and_queries(words)
    raise SystemExit(_predict([*videos, *found], [*queries, *asked], **options))


@main.command()
@click.argument("run", type=FOLDER)
@click.argument("folder", type=FOLDER)
@click.option("--without-clip", is_flag=True, help="Leave out CLIP weights of one's own, which are copied otherwise.")
def export(run: Path, folder: Path, without_clip: bool) -> None:
    """Writes a trained model for others: weights, settings and a card, in the layout of the Hugging Face Hub.

    \b
    Example:
        costl export runs/feats-20260131-120000 my-model/
        costl predict holiday.mp4 "a dog catches a ball" --model my-model/
    """
    from costl.share import export

    notes = export(run, folder, with_clip=not without_clip)
    say(*notes)
    click.echo(folder)


@main.command()
@click.option("--videos", type=FOLDER, help="A folder of videos to choose from.")
@trained
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0: any that is free.")
@click.option("--max-mb", type=click.IntRange(min=1), default=2048, show_default=True, help="Largest upload.")
@click.option("--max-minutes", type=click.IntRange(min=1), default=180, show_default=True, help="Longest video.")
def demo(run: Path | None, model: str | None, **options: Any) -> None:
    """Asks videos in the browser, on this machine only: moments to jump to, the curve, where the model looked.

    \b
    Example:
        costl demo --videos dir/
    Serves 127.0.0.1 and nobody else, until Ctrl-C; nothing is sent anywhere. Needs the extra: pip install 'costl[demo]'
    """
    from costl.demo import demo

    demo(_one_model(run, model), **options, ready=click.echo)


@main.command()
@click.argument("folder", type=FOLDER)
@world_options
def sample(folder: Path, **options: Any) -> None:
    """Writes a made-up world to try everything on: short videos, annotations and a small CLIP.

    \b
    Example:
        costl sample dir/ --videos train=40 --videos val=10
    """
    from pipeline.sample import write_sample

    with Bars() as show:
        write_sample(
            folder, settings=_world(**options), progress=lambda done, total: show(Progress("render", done, total))
        )
    click.echo(folder)


@main.command()
@click.option("--out", "folder", type=FOLDER, default="costl-quickstart", show_default=True, help="Folder to work in.")
@world_options
@overrides
@device
@as_json
def quickstart(folder: Path, overrides: tuple[str, ...], device: str, as_json: bool, **options: Any) -> None:
    """Everything at once: sample world, extraction, training, evaluation, and a table beside two references.

    \b
    Example:
        costl quickstart
    Called again it goes on where it was stopped.
    """
    from costl.quickstart import quickstart

    with Bars() as show:
        results = quickstart(folder, world=_world(**options), overrides=overrides, device=device, progress=show)
    click.echo(json.dumps(results.rows, indent=2) if as_json else results.table())
    say(*(f"{name}: {how}." for name, how in results.how.items()), *results.notes)
    say(*(f"Picture: {path}" for path in results.pictures))


@main.command()
@click.argument("cache", type=ANY_PATH)
@as_json
def status(cache: Path, as_json: bool) -> None:
    """Says of every video in a cache whether it is done, and if not, why.

    \b
    Example:
        costl status feats.h5
    """
    from pipeline.cache import CacheReader

    rows = CacheReader(cache).rows
    click.echo(json.dumps([_plain(row) for row in rows], indent=2) if as_json else _status_table(rows))


class Bars:
    """Draws progress on standard error: a bar for each stage on a terminal, one line for each stage in a log."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Shows where things stand."""
        if self._bar is None or self._bar.desc != f"{progress.stage}: ":
            self.__exit__()
            if not sys.stderr.isatty():
                say(f"{progress.stage} ...")
            self._bar = tqdm(total=progress.total or None, desc=progress.stage, disable=None, dynamic_ncols=True)
            self._bar.desc = f"{progress.stage}: "
        self._bar.set_postfix_str(progress.detail, refresh=False)
        self._bar.update(progress.done - self._bar.n)


def say(*lines: str) -> None:
    """Words for the person, on standard error."""
    for line in lines:
        click.echo(line, err=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _tell_extraction(report: ExtractReport, *, as_json: bool) -> None:
    for row in report.failed:
        say(f"failed: {row.name}: {row.reason}")
    for query in report.truncated:
        say(f"cut: longer than CLIP reads, its end is lost: {query!r}")
    say(f"{len(report.done)} videos extracted, {len(report.skipped)} were there already, {len(report.failed)} failed.")
    found = {"cache": str(report.cache), "done": report.done, "skipped": report.skipped}
    failed = [_plain(row) for row in report.failed]
    click.echo(json.dumps(found | {"failed": failed, "truncated": report.truncated}) if as_json else report.cache)


def _start_or_resume(*, cache: Path | None, run: Path | None, device: str, progress: Tell, **changes: Any) -> Report:
    from costl.config import load_config

    if run is not None and any(changes.values()):
        raise click.UsageError("--resume goes on with the run's own settings: leave out --config, --set and --out.")
    load_config(*changes["config"], overrides=changes["overrides"])  # so that a slip is told before torch is loaded
    from costl.train import resume, train

    if run is not None:
        return resume(run, cache=cache, device=device, progress=progress)
    if cache is None:
        raise click.UsageError("Missing option '--cache', for example: costl train --cache feats.h5")
    return train(cache, device=device, progress=progress, **changes)


def _tell_training(report: Report, *, as_json: bool) -> None:
    score = "" if report.score is None else f" with {report.select} {report.score:.1f} on validation"
    early = ", stopped early" if report.stopped_early else ""
    say(*report.notes, f"{report.epochs} epochs{early}; epoch {report.best_epoch} is kept{score}.")
    click.echo(json.dumps(vars(report), default=str) if as_json else report.run)


def _videos_and_queries(words: Iterable[str]) -> tuple[list[Path], list[str]]:
    """What each argument is; one that looks like a video but is no file would be a strange query."""
    from pipeline.videos import SUFFIXES

    videos: list[Path] = []
    queries: list[str] = []
    for word in words:
        path = Path(word)
        if word and path.is_file():
            videos.append(path)
        elif path.suffix.lower() in SUFFIXES:
            raise click.UsageError(f"{word}: no such file. Check the name, or give it with --query if it is a query.")
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
    **places: Path | None,
) -> int:
    if not videos:
        raise click.UsageError('no video. Name a file, for example: costl predict holiday.mp4 "a dog catches a ball"')
    form = "json" if as_json else form
    from costl.queries import check_form, check_queries  # before torch is loaded

    check_queries(queries)
    check_form(form, videos)
    from costl.ask import load
    from costl.telling import ask_all, write_told

    asker = load(_one_model(run, model), weights=weights, cache_dir=cache_dir, device=device)
    with Bars() as show:
        told = ask_all(asker, videos, queries, top=top, progress=show)
    with Bars() as show:
        made = write_told(
            told.answers, form=form, write=lambda text: click.echo(text, nl=False), progress=show, **places
        )
    say(*(f"failed: {reason}" for reason in told.failed), *(f"Written: {path}" for path in made))
    return 1 if told.failed else 0


def _one_model(run: Path | None, model: str | None) -> Path | str | None:
    if run is not None and model is not None:
        raise click.UsageError("--run and --model both name what to ask: give one of them.")
    return model if run is None else run


def _world(*, counts: Iterable[str], **options: Any) -> Any:
    from pipeline.sample import WorldSettings

    given = {name: value for name, value in options.items() if value is not None}
    return WorldSettings(**given, videos=WorldSettings().videos | dict(map(_count, counts)))


def _count(text: str) -> tuple[str, int]:
    split, _, count = text.partition("=")
    if split not in ("train", "val", "test", "test_unseen") or not count.isdecimal():
        raise click.BadParameter(f"{text!r}: expected train=N, val=N, test=N or test_unseen=N.", param_hint="--videos")
    return split, int(count)


def _plain(row: VideoRow) -> dict[str, Any]:
    names = ("name", "status", "reason", "clips", "duration_s", "repaired", "decoder")
    return {name: getattr(row, name) for name in names}


def _status_table(rows: Iterable[VideoRow]) -> str:
    rows = list(rows)
    width = max([len(row.name) for row in rows], default=0)
    lines = [
        f"{row.name:{width}}  {row.status:8}  {row.reason or f'{row.clips} clips, {row.duration_s:.1f} s'}"
        for row in rows
    ]
    return "\n".join([*lines, f"{sum(row.ok for row in rows)} of {len(rows)} videos have features."])


if __name__ == "__main__":
    main()

"""The `costl` command: parse, call, print, exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Mapping
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
    from pipeline.importing import ImportReport

INTERRUPTED = 130
SCORING = ("benchmark", "official")
FAILURES_SHOWN = 20

FOLDER = click.Path(file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
device = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON to standard output.")
config_files = click.option(
    "--config",
    type=ANY_PATH,
    multiple=True,
    help="YAML that names only what it changes, or the name of a benchmark, as charades. Repeatable.",
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting of training, as train.epochs=20. Repeatable.",
)
benchmark = click.option(
    "--benchmark",
    metavar="NAME",
    help="Whose rules to score by: qvhighlights, charades, tacos, tvsum, youtube-highlights.  [default: the run's; for "
    "files youtube-highlights if the truth has rated_windows, tvsum if domains and no windows, else qvhighlights]",
)
official = click.option("--official", is_flag=True, help="The benchmark's published evaluator, to the last digit.")


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
@click.argument("name")
@click.option("--annotations", required=True, type=ANY_PATH, help="Folder of the official files, or one of them.")
@click.option("--videos", type=FOLDER, help="Folder of the videos.")
@click.option("--out", required=True, type=FOLDER, help="Folder to write.")
@click.option("--allow-missing-videos", is_flag=True, help="Write the rows of videos that are not there, too.")
@click.option(
    "--val-share",
    type=float,
    help="Training videos to hold out where there is no validation split.  [default: 0.1; tvsum: 0]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed: other videos are held out.")
@as_json
def prepare(name: str, out: Path, videos: Path | None, as_json: bool, **options: Any) -> None:
    """Turns a benchmark's official annotation files into train.jsonl, val.jsonl, test.jsonl and its settings.

    NAME is qvhighlights, charades, tacos, tvsum or youtube-highlights.

    \b
    Example:
        costl prepare charades --annotations Charades-STA/ --videos Charades_v1/ --out charades/
        costl extract --videos Charades_v1/ --annotations charades/ --out charades.h5
    Says how many rows, videos and windows each split has, what had to be put right, and what to type next.
    """
    from costl.prepare import next_command, prepare

    with Bars() as show:
        report = prepare(name, out=out, videos=videos, progress=show, **options)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
    say(f"Read {', '.join(report.sources)}.", *report.notes)
    say(*([f"Videos that are not here: {out / 'missing.txt'}"] if report.missing else []))
    say(f"Next: {next_command(report, videos=videos, out=out)}")


@main.command()
@click.option("--videos", required=True, type=ANY_PATH, help="A folder of videos, or one video.")
@click.option("--out", default="feats.h5", show_default=True, type=ANY_PATH, help="The cache to write or complete.")
@click.option(
    "--annotations", type=ANY_PATH, help="Folder or file of annotations, where they are not beside the videos."
)
@click.option(
    "--allow-missing-videos",
    is_flag=True,
    help="Go on without videos that are annotated; what asks about them counts 0.",
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
    writes ./feats.h5 and ./feats.h5.parts/. A costl.yaml in the folder may set model, weights and fps; one in the
    folder of --annotations, as costl prepare writes it, takes its place. Options win over both.
    Exit code 1: finished, but some videos failed or are missing (costl status feats.h5 says why).
    """
    from pipeline.extract import extract

    with Bars() as show:
        report = extract(**options, progress=show)
    _tell_extraction(report, as_json=as_json)
    raise SystemExit(report.exit_code)


@main.command("import")
@click.option("--annotations", required=True, type=ANY_PATH, help="Folder or file of annotations.")
@click.option(
    "--features",
    "streams",
    required=True,
    multiple=True,
    metavar="NAME=DIR",
    help="Folder with VID.npz (`features`) or VID.npy, [clips channels], for every video. Repeatable.",
)
@click.option("--text", required=True, type=FOLDER, help="Folder with qidQID.npz, QID.npz or .npy for every query.")
@click.option("--out", default="feats.h5", show_default=True, type=ANY_PATH, help="The cache to write or complete.")
@click.option("--fps", type=float, help="Features a second.  [default: 0.5]")
@click.option("--joint", metavar="NAME", help="The stream that CLIP's sentences (`pooler_output`) compare with.")
@click.option("--no-normalize", is_flag=True, help="Take the features as they are, not each of length one.")
@click.option("--allow-missing", is_flag=True, help="Videos without a file become failed rows.")
@as_json
def import_(streams: tuple[str, ...], no_normalize: bool, as_json: bool, **options: Any) -> None:
    """Published features in the place of videos: one vector a clip, ready for costl train.

    \b
    Example, with the features that Moment-DETR published:
        costl prepare qvhighlights --annotations official/ --allow-missing-videos --out qvh/
        costl import --annotations qvh/ --features slowfast=slowfast_features \\
            --features clip=clip_features --joint clip --text clip_text_features
        costl train --cache feats.h5
    Streams are put side by side in the order given. Every file is looked at before anything is written. There are no
    patches, so that CoSTL trains without its spatial encoder (spatial.steps=0).
    Exit code 1: finished, but some videos are missing or failed (costl status feats.h5 says which).
    """
    from pipeline.importing import import_features

    with Bars() as show:
        report = import_features(**options, features=_named_folders(streams), normalize=not no_normalize, progress=show)
    _tell_import(report, as_json=as_json)
    raise SystemExit(report.exit_code)


@main.command()
@click.option("--cache", type=ANY_PATH, help="What costl extract wrote.")
@config_files
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
@click.option("--split", help="Which annotations: train, val, test, test_*.  [default: test]")
@click.option("--run", type=FOLDER, help="Folder of the run.  [default: the newest in runs/]")
@click.option("--cache", type=ANY_PATH, help="The run's cache, if it has moved.")
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    help="Those chosen in training, or the average of the last epoch.  [default: best]",
)
@click.option("--predictions", type=ANY_PATH, help="Score this submission file (JSONL) instead of a run.")
@click.option("--truth", type=ANY_PATH, help="The annotations that --predictions answer.")
@benchmark
@official
@click.option("--out", type=FOLDER, help="Where to write.  [default: eval-SPLIT/ in the run]")
@click.option("--submission", type=ANY_PATH, metavar="ZIP", help="Write val and test as QVHighlights takes them.")
@click.option("--device", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one.  [default: auto]")
@as_json
def evaluate(as_json: bool, **options: Any) -> None:
    """Scores a trained run on a split; prints the table and writes predictions, metrics and a picture.

    \b
    Examples:
        costl evaluate --split test
        costl evaluate --predictions mine.jsonl --truth val.jsonl --official
        costl evaluate --submission hl.zip
    The second scores anyone's predictions, without a run or a cache. Intervals are 95 % bootstrap intervals over queries.
    """
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if "predictions" in given or "truth" in given:
        _evaluate_files(given, as_json=as_json)
    elif "submission" in given:
        _write_submission(given)
    else:
        _evaluate_run(given, as_json=as_json)


@main.command()
@click.argument("run", type=FOLDER, required=False)
@click.option("--split", default="test", show_default=True, help="Which annotations: train, val, test, test_*.")
@click.option("--out", type=ANY_PATH, help="The file to write.  [default: report-SPLIT.html in the run]")
@click.option("--videos", type=FOLDER, help="Where the videos are now, if they have moved since extraction.")
@click.option("--detailed", type=int, default=40, show_default=True, help="Queries with timelines, pictures and maps.")
@click.option("--cache", type=ANY_PATH, help="The run's cache, if it has moved.")
@device
@as_json
def report(as_json: bool, **options: Any) -> None:
    """Shows what a run found, in one HTML file: numbers, curves, every query, and where the model looked.

    \b
    Examples:
        costl report runs/feats-20260131-120000
        costl report --split val --out val.html
    RUN is the newest in runs/ unless it is named. The file needs no network and opens by a double click.
    """
    from costl.report import report

    with Bars() as show:
        found = report(**options, progress=show)
    click.echo(json.dumps(vars(found), default=str) if as_json else found.path)
    size = f"{found.size_bytes / 1e6:.1f} MB" if found.size_bytes >= 1e5 else f"{found.size_bytes / 1e3:.0f} kB"
    say(*found.notes, f"{found.detailed} of {found.queries} queries in full detail, {found.pictures} pictures, {size}.")


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
@click.argument("a", type=ANY_PATH)
@click.argument("b", type=ANY_PATH)
@click.option("--truth", type=ANY_PATH, required=True, help="The annotations that both answer.")
@benchmark
@official
@as_json
def compare(as_json: bool, **options: Any) -> None:
    """Two prediction files on the same queries: by how much is B better, and is it more than luck?

    \b
    Example:
        costl compare mine.jsonl theirs.jsonl --truth val.jsonl
    For each number the difference, its 95 % interval (paired bootstrap) and p (sign flips), both over queries.
    """
    from costl.compare import compare

    found = compare(**options)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())


@main.command()
@click.option("--cache", required=True, type=ANY_PATH, help="The cache that costl extract wrote.")
@click.option("--seeds", default=5, show_default=True, help="How many trainings, with the seeds 0, 1, 2, ...")
@click.option("--split", default="test", show_default=True, help="What every run is scored on.")
@config_files
@overrides
@click.option("--out", type=FOLDER, help="Folder of the runs; what it holds is not trained again.")
@device
@as_json
def repeat(as_json: bool, **options: Any) -> None:
    """Trains with several seeds and prints mean and standard deviation.

    \b
    Example:
        costl repeat --cache feats.h5 --seeds 3
    For TVSum and YouTube Highlights every domain gets a model of its own. Without a validation split (TVSum) the last epoch
    counts; with --set train.select_on=test the best epoch on test, as papers report it, stands beside it.
    """
    from costl.repeat import repeat, to_json

    with Bars() as show:
        result = repeat(**options, progress=show)
    click.echo(json.dumps(to_json(result), indent=2) if as_json else result.table())
    say(*result.notes, f"Runs and every number: {result.folder}/")


@main.command()
@click.option("--cache", required=True, type=ANY_PATH, help="The cache that costl extract wrote.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each variant, with the seeds 0, 1, 2, ...")
@click.option(
    "--variants",
    multiple=True,
    metavar="NAME,...",
    help="Standard variants by name, or a YAML file of your own. Repeatable.  [default: the standard list]",
)
@click.option("--split", "splits", multiple=True, default=["test"], show_default=True, help="Scored on. Repeatable.")
@config_files
@overrides
@click.option("--out", type=FOLDER, default="ablation", show_default=True, help="Folder of the runs and the tables.")
@click.option("--jobs", default=1, show_default=True, help="Trainings side by side, each with its share of the cores.")
@device
@as_json
def ablate(as_json: bool, **options: Any) -> None:
    """Trains the model without each of its parts, and baselines, and says what every part is worth.

    \b
    Examples:
        costl ablate --cache feats.h5 --split test --split test_unseen
        costl ablate --cache feats.h5 --variants steps-0,steps-1,cls,adapter --jobs 2
        costl ablate --cache feats.h5 --variants mine.yaml
    A line of mine.yaml:  small-k: {spatial.top_k: 2}
    Mean and standard deviation over the seeds, and the difference to the full model on the same seeds. Standard variants:
    steps-0, steps-1, steps-2, no-clip-prior, top-k-4, top-k-16, top-k-all, strides-1, strides-1-2, strides-1-2-4-8,
    no-top-down, no-LOSS for each loss as no-saliency, and the baselines cls and adapter. Killed and given again, the
    command goes on: finished runs are kept.
    """
    from costl.config import load_config
    from costl.variants import choose_variants

    load_config(*options["config"], overrides=options["overrides"])  # so that slips are told before torch is loaded
    choose_variants(options["variants"], patches=1)
    from costl.ablate import ablate
    from costl.ablation import to_json

    with Bars() as show:
        result = ablate(**options, progress=show)
    click.echo(json.dumps(to_json(result), indent=2) if as_json else result.table())
    say(*result.notes, f"Runs, every number and the tables: {result.folder}/")


@main.command()
@click.option("--cache", required=True, type=ANY_PATH, help="The cache of a sample world.")
@click.option("--split", "splits", multiple=True, default=["test"], show_default=True, help="Scored on. Repeatable.")
@click.option("--objects", type=ANY_PATH, help="The world's objects.jsonl.  [default: beside its videos]")
@click.option("--seed", default=0, show_default=True, help="Another seed: other questions.")
@as_json
def diagnose(as_json: bool, **options: Any) -> None:
    """Says what can be read linearly from CLIP's tokens, and from which: the frame token, or the patches?

    \b
    Example:
        costl diagnose --cache feats.h5 --split test --split test_unseen
    Only a sample world (costl sample, costl quickstart) knows the truth that this needs: which thing is where at every
    clip, how large, moving how. Linear readers learn it on the training videos and are scored on others.
    """
    from costl.diagnose import QUESTIONS, SOURCES, diagnose

    with Bars() as show:
        found = diagnose(**options, progress=show)
    click.echo(json.dumps(vars(found), indent=2) if as_json else found.table())
    say(*(f"{name}: {what}." for name, what in (QUESTIONS | SOURCES).items()), *found.notes)


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
@click.argument("cache", type=ANY_PATH)
@click.option("--all", "everything", is_flag=True, help="A line for every video.")
@as_json
def status(cache: Path, everything: bool, as_json: bool) -> None:
    """Says which videos of a cache have no features and why, and how many have.

    \b
    Example:
        costl status feats.h5
    With --json every video is listed.
    """
    from pipeline.cache import CacheReader
    from pipeline.status import status_table

    rows = CacheReader(cache).rows
    click.echo(
        json.dumps([_plain(row) for row in rows], indent=2) if as_json else status_table(rows, everything=everything)
    )


@main.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--quick", is_flag=True, help="Only sizes and first bytes: finds what is cut short, not a flipped bit.")
@as_json
def verify(cache: Path, quick: bool, as_json: bool) -> None:
    """Reads every file of a cache and compares it with the checksum it was written with.

    \b
    Example:
        costl verify feats.h5
    Exit code 3: something is damaged. Delete those files and run costl extract (or import) again: it makes only them.
    """
    from pipeline.verify import verify

    with Bars() as show:
        found = verify(cache, quick=quick, progress=show)
    damaged = [vars(damage) for damage in found.damaged]
    told = {"cache": cache, "checked": found.checked, "quick": quick, "damaged": damaged}
    click.echo(json.dumps(told, indent=2, default=str) if as_json else found.table())
    if damaged:
        say("Delete the damaged files and give the same costl extract or costl import again: it makes only them.")
    raise SystemExit(found.exit_code)


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


@main.group()
def bench() -> None:
    """Measures speed, each time beside what it is compared with."""


@bench.command("metrics")
@click.option(
    "--predictions", type=ANY_PATH, help="A submission file.  [default: synthetic, as large as QVHighlights val]"
)
@click.option("--truth", type=ANY_PATH, help="The annotations that --predictions answer.")
@click.option("--seed", default=0, show_default=True, help="Another seed: other synthetic predictions.")
@as_json
def bench_metrics(as_json: bool, **options: Any) -> None:
    """The official QVHighlights metrics against a plain loop over the queries; both must agree in every digit.

    \b
    Example:
        costl bench metrics
    """
    from costl.bench import bench_metrics

    found = bench_metrics(**options)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())


@bench.command("index")
@click.option("--videos", default=10148, show_default=True, help="Videos of the large cache; QVHighlights has 10148.")
@as_json
def bench_index(videos: int, as_json: bool) -> None:
    """How a cache of many videos behaves beside one of 1,000: to open, to verify, to read.

    \b
    Example:
        costl bench index
    Writes both caches to a temporary folder first: half a minute or two.
    """
    from costl.bench_index import bench_index

    with Bars() as show:
        found = bench_index(videos=videos, progress=show)
    click.echo(json.dumps(found.rows, indent=2) if as_json else found.table())


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


def _named_folders(streams: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for stream in streams:
        name, _, folder = stream.partition("=")
        if not (name and folder) or name in found:
            hint = "named twice" if name in found else "expected NAME=DIR, such as clip=clip_features"
            raise click.BadParameter(f"{stream!r}: {hint}.", param_hint="--features")
        found[name] = Path(folder)
    return found


def _tell_import(report: ImportReport, *, as_json: bool) -> None:
    for row in report.failed[:FAILURES_SHOWN]:
        say(f"{row.status}: {row.name}: {row.reason}")
    if len(report.failed) > FAILURES_SHOWN:
        say(f"... and {len(report.failed) - FAILURES_SHOWN} more (costl status {report.cache}).")
    if report.cut or report.padded:
        say(
            f"Not quite as long as annotated: {report.cut} videos were cut, {report.padded} had their last row repeated."
        )
    if not report.joint:
        say(
            "No --joint: frames and sentences are not known to share a space, so that their similarity counts for nothing."
        )
    say(f"{len(report.done)} videos imported, {len(report.skipped)} were there already, {len(report.failed)} failed.")
    failed = [_plain(row) for row in report.failed]
    click.echo(json.dumps(vars(report) | {"failed": failed}, default=str) if as_json else report.cache)


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
    place = "test (legacy: chosen on test)" if report.legacy else "validation"
    score = "" if report.score is None else f" with {report.select} {report.score:.1f} on {place}"
    early = ", stopped early" if report.stopped_early else ""
    say(*report.notes, f"{report.epochs} epochs{early}; epoch {report.best_epoch} is kept{score}.")
    click.echo(json.dumps(vars(report), default=str) if as_json else report.run)


def _evaluate_run(given: Mapping[str, Any], *, as_json: bool) -> None:
    from costl.evaluate import evaluate
    from costl.export import metrics_table

    with Bars() as show:
        found = evaluate(**given, progress=show)
    if as_json or found.metrics:
        click.echo(json.dumps(found.metrics, indent=2) if as_json else metrics_table(found.metrics))
    say(*([_how_scored(found.metrics)] if found.metrics else []), *found.notes)
    say(f"Predictions{', metrics' if found.metrics else ''} and a picture: {found.folder}/")


def _evaluate_files(given: dict[str, Any], *, as_json: bool) -> None:
    _refuse_beside("--predictions and --truth", given, "they need no run", but={"predictions", "truth", *SCORING})
    if not {"predictions", "truth"} <= given.keys():
        raise click.UsageError("--predictions and --truth belong together: give both.")
    from costl.export import metrics_table
    from costl.scoring import score_files

    metrics = score_files(**given)
    click.echo(json.dumps(metrics, indent=2) if as_json else metrics_table(metrics))
    say(_how_scored(metrics))


def _how_scored(metrics: Mapping[str, Any]) -> str:
    how = metrics["scored"]
    published = " by its published evaluator" if how["official"] else ""
    return f"{how['queries']} queries, scored as {how['benchmark']}{published}, clips of {how['clip_s']:g} s."


def _write_submission(given: dict[str, Any]) -> None:
    _refuse_beside(
        "--submission", given, "it holds val and test", but={"submission", "run", "cache", "weights", "device"}
    )
    from costl.submission import submit

    with Bars() as show:
        click.echo(submit(given.pop("submission"), **given, progress=show))


def _refuse_beside(what: str, given: Mapping[str, Any], why: str, *, but: set[str]) -> None:
    wrong = [f"--{name}" for name in given if name not in but]
    if wrong:
        raise click.UsageError(f"{what} cannot be combined with {', '.join(wrong)}: {why}.")


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


if __name__ == "__main__":
    main()

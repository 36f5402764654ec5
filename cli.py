"""The `costl` command: parse, call, print, exit code."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from costl.ask.answer import FORMATS
from costl.pipeline.errors import CostlError
from costl.pipeline.progress import Progress, Tell
from costl.training.launch import launched

if TYPE_CHECKING:
    from costl.pipeline.cache.index import VideoRow
    from costl.pipeline.cache.merge import MergeReport
    from costl.pipeline.extract import ExtractReport
    from costl.pipeline.published.import_features import ImportReport
    from costl.train import Report

INTERRUPTED = 130
SCORING = ("benchmark", "official")
SHARED = ("train", "evaluate")  # what several processes do together, started by torchrun
FAILURES_SHOWN = 20
LINE_EVERY_S = 30.0
FLOWING = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"

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
            if not error.told:
                say(f"Error: {error}")
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            if launched().first:  # the others were given the same words
                raise
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            if launched().first:
                say(f"Interrupted. {stop or 'What was finished is kept; the same command goes on from there.'}")
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
    command = click.get_current_context().invoked_subcommand
    if launched().count > 1 and command not in SHARED:
        raise click.UsageError(
            f"costl {command} is one process's work, and torchrun started {launched().count}. Give the command without "
            f"torchrun; what several processes share is {' and '.join(SHARED)}."
        )


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
    from costl.benchmarks.prepare import next_command, prepare

    with Bars() as show:
        report = prepare(name, out=out, videos=videos, progress=show, **options)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.table())
    say(f"Read {', '.join(report.sources)}.", *report.notes)
    say(*([f"Videos that are not here: {out / 'missing.txt'}"] if report.missing else []))
    say(f"Next: {next_command(report, videos=videos, out=out)}")


@main.command()
@click.option("--videos", type=ANY_PATH, help="A folder of videos, or one video.")
@click.option("--cache", type=ANY_PATH, help="Add --annotations and their words to this cache; no video is touched.")
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
@click.option(
    "--decoder",
    type=click.Choice(["decord", "pyav", "torchcodec", "torchcodec:cuda", "auto"]),
    help="What decodes; auto: the fastest that works here. All but cuda give the same frames.  [default: decord]",
)
@click.option(
    "--sampling",
    type=click.Choice(["centre", "cheapest"]),
    help="Which frame stands for a clip: the one at its centre, or the one that costs least to decode.  "
    "[default: centre]",
)
@click.option(
    "--resize",
    type=click.Choice(["device", "decoder"]),
    help="Who scales frames: the device, exactly as CLIP wants it, or the decoder, with less memory.  [default: device]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "int8"]),
    help="Of the stored tokens; int8: half the size, wrong by about 0.5 %.  [default: float16]",
)
@click.option("--layers", type=int, metavar="K", help="Keep the tokens of CLIP's last K blocks.  [default: 1]")
@click.option(
    "--tokens",
    type=click.Choice(["all", "cls"]),
    help="cls: the frame's token without its patches, a fiftieth of the size; train with spatial.steps=0.  [default: all]",
)
@click.option("--workers", type=int, help="Decode processes.  [default: one a core]")
@click.option("--batch", type=int, help="Frames encoded at once.  [default: CPU 8, GPU up to 256 as memory allows]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of the image tower.  [default: GPU fp16, CPU fp32]",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the image tower first: takes a while, for long runs."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:1, ...; several as cuda:0,cuda:1; auto: a GPU if there is one.",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="A Dask scheduler, as tcp://scheduler:8786, whose workers do the videos. Needs the extra: pip install 'costl[cluster]'",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Only the I-th of N shares of the videos, as 2/4; each into its own --out. Joined by costl merge.",
)
@click.option("--quiet", is_flag=True, help="Say nothing until the end but what failed.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines while it runs; the last one is done.")
def extract(as_json: bool, quiet: bool, **options: Any) -> None:
    """Videos in, features out: runs once, and again only for what is missing.

    \b
    Examples:
        costl extract --videos dir/
        costl extract --cache feats.h5 --annotations more.jsonl
        costl extract --videos dir/ --dtype int8
    The first writes ./feats.h5 and ./feats.h5.parts/. The second adds the split "more" to a cache that is there (or puts it
    in the place of one of this name); the videos may be gone. The third stores half the size, for a large collection.
    A costl.yaml in the folder may set what decides the features (model, weights, fps, decoder, sampling, resize, dtype,
    layers, tokens); one in the folder of --annotations, as costl prepare writes it, takes its place. Options win over both.
    The bar says which half the other one is waiting for: decode, CLIP or the disk. Every run leaves a line of figures in
    feats.h5.runs.jsonl.
    Exit code 1: finished, but some videos failed or are missing (costl status feats.h5 says why).
    """
    if options.pop("cache") is not None:
        raise SystemExit(_add_words(as_json=as_json))
    if options["videos"] is None:
        raise click.UsageError("Missing option '--videos', for example: costl extract --videos dir/")
    from costl.pipeline.extract import extract

    with Bars(silent=quiet) as show:
        report = extract(**options, progress=Events(show) if as_json else show)
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
    from costl.pipeline.published.import_features import import_features

    with Bars() as show:
        report = import_features(**options, features=_named_folders(streams), normalize=not no_normalize, progress=show)
    _tell_import(report, as_json=as_json)
    raise SystemExit(report.exit_code)


@main.command()
@click.argument("out", type=ANY_PATH)
@click.argument("caches", type=ANY_PATH, nargs=-1, required=True)
@as_json
def merge(out: Path, caches: tuple[Path, ...], as_json: bool) -> None:
    """Joins caches of the same settings, as costl extract --shard makes them, into the cache OUT.

    \b
    Example:
        costl extract --videos dir/ --shard 1/2 --out a.h5     # one machine
        costl extract --videos dir/ --shard 2/2 --out b.h5     # another
        costl merge feats.h5 a.h5 b.h5
    From all shares it makes what one machine would have made, byte for byte. Parts are hard links where the file system
    can, otherwise verified copies. Interrupted, or with a share that comes later, the same command goes on.
    Exit code 1: joined, but some videos have no features. 3: caches that differ, named.
    """
    from costl.pipeline.cache.merge import merge

    with Bars() as show:
        report = merge(out, caches, progress=show)
    _tell_merge(report, as_json=as_json)
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
        costl train --cache feats.h5 --set train.workers=4 --set train.compile=true
        torchrun --standalone --nproc_per_node=2 -m cli train --cache feats.h5
    The last one shares every batch between two GPUs, or two processes on a CPU, to the same result.
    Settings: configs/default.yaml, then those that came with the videos, then --config, then --set.
    Ctrl-C and SIGTERM keep every step; --resume goes on from there, on a CPU to the last bit as if nobody had stopped it.
    A GPU that waits (`waiting` in metrics.jsonl is the share of the time) has its batches read by train.workers processes.
    train.precision is half precision on a GPU by itself, train.bucket_batches=8 saves padding where videos differ in length,
    and train.tensorboard=true writes for TensorBoard what metrics.jsonl holds.
    """
    with Bars() as show:
        report = _start_or_resume(**options, progress=show)
    if launched().first:
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
    if launched().count > 1 and given.keys() & {"predictions", "truth", "submission"}:
        raise click.UsageError("several processes share the evaluation of a run; give this command without torchrun.")
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
    from costl.report.build import report

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
    from costl.demo.app import demo

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
    from costl.metrics.compare import compare

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
    from costl.experiments.repeat import repeat, to_json

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
    steps-0, steps-1, steps-2, no-clip-prior, top-k-4, top-k-16, top-k-32, top-k-all, strides-1, strides-1-2, strides-1-2-4-8,
    top-down, no-top-down, no-null-tokens, kernel-1, no-LOSS for each loss as no-saliency, and the baselines cls and adapter,
    also as cls-slower and adapter-slower, at a quarter of the learning rate. Killed and given again, the command goes on:
    finished runs are kept.
    """
    from costl.config import load_config
    from costl.experiments.variants import choose_variants

    load_config(*options["config"], overrides=options["overrides"])  # so that slips are told before torch is loaded
    choose_variants(options["variants"], patches=1, learning_rate=1.0)
    from costl.experiments.ablate import ablate
    from costl.experiments.tables import to_json

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
    from costl.experiments.probe import QUESTIONS, SOURCES, diagnose

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
    from costl.ask.export import export

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
    With --json every video is listed. Whether videos have changed since: costl verify feats.h5 --videos dir/
    """
    from costl.pipeline.cache.inspect import status_table
    from costl.pipeline.cache.reader import CacheReader
    from costl.pipeline.run.history import in_words, last_run

    rows = CacheReader(cache).rows
    click.echo(
        json.dumps([_plain(row) for row in rows], indent=2) if as_json else status_table(rows, everything=everything)
    )
    run = last_run(cache)
    say(*([in_words(run)] if run and in_words(run) else []))


@main.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--quick", is_flag=True, help="Only sizes and first bytes: finds what is cut short, not a flipped bit.")
@click.option("--videos", type=FOLDER, help="Compare the videos in this folder with those that were extracted, too.")
@as_json
def verify(cache: Path, quick: bool, videos: Path | None, as_json: bool) -> None:
    """Reads every file of a cache and compares it with the checksum it was written with.

    \b
    Examples:
        costl verify feats.h5
        costl verify feats.h5 --quick --videos dir/
    Exit code 3: something is damaged. Delete those files and run costl extract (or import) again: it makes only them.
    Exit code 1: nothing is damaged, but a video has changed since it was extracted, or is missing.
    """
    from costl.pipeline.cache.verify import verify

    with Bars() as show:
        found = verify(cache, quick=quick, videos=videos, progress=show)
    damaged, changed = [vars(damage) for damage in found.damaged], [vars(one) for one in found.changed]
    told = {"cache": cache, "checked": found.checked, "quick": quick, "damaged": damaged}
    told |= {"videos": found.videos, "changed": changed} if videos else {}
    click.echo(json.dumps(told, indent=2, default=str) if as_json else found.table())
    if damaged:
        say(found.next_step)
    raise SystemExit(found.exit_code)


@main.command()
@click.argument("cache", type=ANY_PATH)
@click.argument("video", required=False)
@as_json
def inspect(cache: Path, video: str | None, as_json: bool) -> None:
    """Says what is inside a cache: how its features were made, how many there are, and what they belong to.

    \b
    Examples:
        costl inspect feats.h5
        costl inspect feats.h5 holiday
    With a VIDEO, called as in the annotations: its times, its tokens, and where its bytes lie.
    """
    from costl.pipeline.cache.inspect import inspect_cache, inspect_video

    found = inspect_video(cache, video) if video else inspect_cache(cache)
    click.echo(json.dumps(found.facts, indent=2) if as_json else found.table())


@main.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--out", required=True, type=ANY_PATH, help="The file to write.")
@click.option(
    "--without-damaged", is_flag=True, help="Leave out videos whose parts are damaged, and say so in their rows."
)
@as_json
def pack(cache: Path, out: Path, without_damaged: bool, as_json: bool) -> None:
    """Makes one file of a cache, for moving; everything but costl extract reads it as it is.

    \b
    Examples:
        costl pack feats.h5 --out feats.packed.h5
        costl train --cache feats.packed.h5
    Every part is compared with its checksum before anything is written. A run that was trained from the one can be
    evaluated from the other.
    """
    from costl.pipeline.cache.pack import pack

    with Bars() as show:
        found = pack(cache, out=out, without_damaged=without_damaged, progress=show)
    say(*(f"left out: {damage.name}: {damage.problem}" for damage in found.damaged))
    say(f"{found.videos} videos and the words, {found.size_bytes / 1e6:.1f} MB.")
    told = {"out": out, "videos": found.videos, "size_bytes": found.size_bytes}
    told["damaged"] = [vars(damage) for damage in found.damaged]
    click.echo(json.dumps(told, default=str) if as_json else out)


@main.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--out", required=True, type=ANY_PATH, help="The index to write; its parts go into a folder beside it.")
@click.option("--without-damaged", is_flag=True, help="Leave out what is damaged; costl extract then makes only that.")
@as_json
def unpack(cache: Path, out: Path, without_damaged: bool, as_json: bool) -> None:
    """Takes a packed file apart again, so that costl extract can add to it: every part as it was, byte for byte.

    \b
    Example:
        costl unpack feats.packed.h5 --out feats.h5
    Stopped, it goes on when it is called again. The packed file stays.
    """
    from costl.pipeline.cache.pack import unpack

    with Bars() as show:
        found = unpack(cache, out=out, without_damaged=without_damaged, progress=show)
    say(*(f"left out: {damage.name}: {damage.problem}" for damage in found.damaged))
    say(f"{found.videos} videos and the words.")
    told = {"out": out, "videos": found.videos, "damaged": [vars(damage) for damage in found.damaged]}
    click.echo(json.dumps(told, default=str) if as_json else out)


@main.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--delete", is_flag=True, help="Delete them; without it they are only listed.")
@as_json
def gc(cache: Path, delete: bool, as_json: bool) -> None:
    """Lists what lies beside a cache and belongs to it no more; with --delete, removes it.

    \b
    Examples:
        costl gc feats.h5
        costl gc feats.h5 --delete
    These are parts of videos that left the folder, words of annotations that changed, and what killed runs left half-
    written. What is not known to be CoSTL's own stays, and nothing is touched while costl extract is writing.
    """
    from costl.pipeline.cache.gc import collect

    found = collect(cache, delete=delete)
    told = {"cache": cache, "deleted": found.deleted, "size_bytes": found.size_bytes, "foreign": found.foreign}
    told["found"] = [vars(one) for one in found.found]
    click.echo(json.dumps(told, indent=2, default=str) if as_json else found.table())
    say(*(f"left alone, not known to be a leftover: {path}" for path in found.foreign))
    if found.found and not delete:
        say(f"Nothing was deleted. To do so: costl gc {cache} --delete")


@main.command()
@click.argument("folder", type=FOLDER)
@world_options
def sample(folder: Path, **options: Any) -> None:
    """Writes a made-up world to try everything on: short videos, annotations and a small CLIP.

    \b
    Example:
        costl sample dir/ --videos train=40 --videos val=10
    """
    from costl.pipeline.world.sample import write_sample

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
    from costl.experiments.quickstart import quickstart

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
    from costl.bench.metrics import bench_metrics

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
    from costl.bench.index import bench_index

    with Bars() as show:
        found = bench_index(videos=videos, progress=show)
    click.echo(json.dumps(found.rows, indent=2) if as_json else found.table())


@bench.command("cache")
@click.option("--cache", type=ANY_PATH, help="Measure with the tokens of this cache.  [default: random ones]")
@click.option("--videos", default=64, show_default=True, help="How many videos at most.")
@click.option("--rounds", default=3, show_default=True, help="The table shows the middle one.")
@click.option("--folder", type=FOLDER, default=".", show_default=True, help="On the disk where caches will lie.")
@as_json
def bench_cache(as_json: bool, **options: Any) -> None:
    """Writing and reading a cache beside plain files and memory maps of the same bytes; size and error of int8.

    \b
    Example:
        costl bench cache --cache feats.h5
    Needs about 16 MB a video in --folder while it runs, and leaves nothing there.
    """
    from dataclasses import asdict

    from costl.pipeline.bench.cache import bench_cache

    with Bars() as show:
        found = bench_cache(**options, progress=show)
    click.echo(json.dumps(asdict(found), indent=2) if as_json else found.table())


@bench.command("extract")
@click.option(
    "--videos", type=FOLDER, help="A folder of videos.  [default: rendered clips and a few of the sample world]"
)
@click.option("--model", "models", multiple=True, help="Name of an open_clip model. Repeatable.  [default: ViT-B-32]")
@click.option("--weights", help="As in costl extract.  [default: random ones, which take the same time]")
@click.option("--fps", type=float, default=0.5, show_default=True, help="Clips a second.")
@click.option("--decoder", default="auto", show_default=True, help="As in costl extract.")
@click.option("--batch", type=int, help="Frames encoded at once.  [default: what suits the device]")
@click.option(
    "--imitate", "rate", type=float, help="Frames a second of the imitated accelerator.  [default: 4 x decoding alone]"
)
@click.option("--repeats", default=2, show_default=True, help="Of each measurement; the best counts.")
@click.option("--quick", is_flag=True, help="Tiny clips, a tiny CLIP: shows that it runs, not how fast.")
@device
@as_json
def bench_extract(as_json: bool, **options: Any) -> None:
    """Extraction from end to end beside each of its halves alone, and beside the straightforward way.

    \b
    Examples:
        costl bench extract
        costl bench extract --videos dir/ --repeats 1
        costl bench extract --device cuda --model ViT-B-32 --model ViT-B-16 --model ViT-L-14
    Some minutes; clips are rendered on the first call and kept in the temporary folder. On a CPU, where both halves need
    the same cores, an accelerator is imitated as well. Peak memory: one video beside a longer one, few beside many.
    """
    from costl.pipeline.bench.extract import bench_extract

    with Bars() as show:
        found = bench_extract(**options, progress=show)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())


@bench.command("decode")
@click.option("--videos", type=FOLDER, help="A folder of videos.  [default: clips rendered for it]")
@click.option("--fps", type=float, multiple=True, default=(0.5, 1.0, 2.0), show_default=True, help="Repeatable.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Of each video, from its start.")
@click.option("--repeats", default=2, show_default=True, help="Of each measurement; the best counts.")
@click.option("--quick", is_flag=True, help="Tiny clips: shows that it runs, not how fast.")
@as_json
def bench_decode(as_json: bool, **options: Any) -> None:
    """Our decoders beside the plain use of each library that is here, in sampled frames per CPU second.

    \b
    Examples:
        costl bench decode
        costl bench decode --videos dir/ --repeats 1
    Some minutes. Each runs alone on one thread; what its threads and processes use counts, too.
    """
    from costl.pipeline.bench.decode import bench_decode

    with Bars() as show:
        found = bench_decode(**options, progress=show)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())


@bench.command("train")
@click.option(
    "--videos",
    type=int,
    multiple=True,
    default=(32, 13),
    show_default=True,
    help="That 32 queries are about. Repeatable.",
)
@click.option("--rounds", default=3, show_default=True, help="Of each measurement; the table shows the middle one.")
@click.option("--threads", type=int, help="Of the CPU.  [default: as many as torch takes]")
@click.option("--quick", is_flag=True, help="Tiny shapes: shows that it runs, not how fast.")
@device
@as_json
def bench_train(as_json: bool, **options: Any) -> None:
    """A batch through the model beside both baselines: queries a second, peak memory, operations.

    \b
    Examples:
        costl bench train
        costl bench train --threads 1 --videos 19
        costl bench train --device cuda --json
    Random features of ViT-B/32 and ViT-L/14, 75 clips a video, as QVHighlights has them. QVHighlights asks 1.02 queries about
    a video, so that a batch has 32 videos; Charades-STA has 13 in one. Forward is what evaluation does, forward + backward
    what training does, without its optimizer. On two cores a quarter of an hour and 16 GB of memory.
    """
    from costl.bench.train import bench_train

    with Bars() as show:
        found = bench_train(**options, progress=show)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())


class Bars:
    """Draws progress on standard error: a bar for each stage on a terminal; in a log a line for each, and for a long
    extraction another one now and then. `silent`: only words that must be read.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._bar: tqdm | None = None
        self._silent, self._next_line_s = silent, 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Shows where things stand."""
        if progress.word:
            tqdm.write(progress.word, file=sys.stderr)
        if not self._silent:
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        if self._bar is None or self._bar.desc != f"{progress.stage}: ":
            self.__exit__()
            if not sys.stderr.isatty():
                say(f"{progress.stage} ...")
            self._bar = tqdm(
                total=progress.total or None,
                desc=progress.stage,
                disable=None,
                dynamic_ncols=True,
                bar_format=FLOWING if progress.flow else None,
            )
            self._bar.desc = f"{progress.stage}: "
            self._next_line_s = time.monotonic() + LINE_EVERY_S
        self._bar.set_postfix_str(str(progress.flow or progress.detail), refresh=False)
        self._bar.update(progress.done - self._bar.n)
        if progress.flow and not progress.video:
            self._stay_alive(self._bar, progress)

    def _stay_alive(self, bar: tqdm, progress: Progress) -> None:
        """Shows how frames flow even while no video ends."""
        if not bar.disable:
            bar.refresh()
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LINE_EVERY_S
            say(f"{progress.stage}: {progress.done} of {progress.total}, {progress.flow}")


class Events:
    """Prints what an extraction tells as JSON lines on standard output, and hands it on.

    `{"event": "video", "name", "status", "reason"}` for each that has ended, `{"event": "note", "text"}`, and at most
    once a second `{"event": "progress", "stage", "done", "total", "flow"}`.
    """

    def __init__(self, then: Tell) -> None:
        self._then, self._stage, self._next_s = then, "", 0.0

    def __call__(self, progress: Progress) -> None:
        """Prints one, unless it comes too soon."""
        if progress.word:
            _print_event("note", text=progress.word)
        elif progress.video:
            reason = "" if progress.status == "ok" else progress.detail
            _print_event("video", name=progress.video, status=progress.status, reason=reason)
        elif progress.stage != self._stage or time.monotonic() >= self._next_s:
            self._stage, self._next_s = progress.stage, time.monotonic() + 1
            flow = vars(progress.flow) if progress.flow else None
            _print_event("progress", stage=progress.stage, done=progress.done, total=progress.total, flow=flow)
        self._then(progress)


def _print_event(kind: str, **content: Any) -> None:
    click.echo(json.dumps({"event": kind, **content}))


def say(*lines: str) -> None:
    """Words for the person, on standard error."""
    for line in lines:
        click.echo(line, err=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _tell_extraction(report: ExtractReport, *, as_json: bool) -> None:
    from costl.pipeline.cache.inspect import by_reason

    say(*by_reason(report.failed))
    for query in report.truncated:
        say(f"cut: longer than CLIP reads, its end is lost: {query!r}")
    if report.changed:
        some = ", ".join(report.changed[:5]) + (", ..." if len(report.changed) > 5 else "")
        say(f"{len(report.changed)} videos changed since they were extracted: {some}.")
    for split in report.dropped:
        say(
            f"split {split} is not among these annotations and left the cache; to have it back: "
            f"costl extract --cache {report.cache} --annotations {split}.jsonl"
        )
    say(f"{len(report.done)} videos extracted, {len(report.skipped)} were there already, {len(report.failed)} failed.")
    if not as_json:
        click.echo(report.cache)
        return
    found = {"cache": str(report.cache), "done": report.done, "skipped": report.skipped}
    found |= {"changed": report.changed, "dropped": report.dropped}
    _print_event("done", **found, failed=[_plain(row) for row in report.failed], truncated=report.truncated)


def _add_words(*, as_json: bool) -> int:
    context = click.get_current_context()
    asked = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    fits = ("cache", "annotations", "weights", "allow_missing_videos", "device")
    wrong = sorted(f"--{name.replace('_', '-')}" for name in asked - {*fits, "as_json", "quiet"})
    if wrong:
        raise click.UsageError(f"--cache adds annotations to features that are made: leave out {', '.join(wrong)}.")
    if context.params["annotations"] is None:
        raise click.UsageError("--cache needs --annotations, for example: --cache feats.h5 --annotations more.jsonl")
    from costl.pipeline.add_queries import add_words

    with Bars(silent=context.params["quiet"]) as show:
        added = add_words(**{name: context.params[name] for name in fits}, progress=show)
    for split in added.splits:
        was = "is new" if split.before is None else f"takes the place of one of {split.before} rows"
        say(f"split {split.name}: {split.after} rows, {was}.")
    say(*(f"missing: {name}: annotated, but without features" for name in added.missing[:FAILURES_SHOWN]))
    say(*(f"cut: longer than CLIP reads, its end is lost: {query!r}" for query in added.truncated))
    say(f"{added.new} queries encoded, {added.known} were there already.")
    click.echo(json.dumps(asdict(added), default=str) if as_json else added.cache)
    return added.exit_code


def _say_failed(report: MergeReport | ImportReport) -> None:
    say(*(f"{row.status}: {row.name}: {row.reason}" for row in report.failed[:FAILURES_SHOWN]))
    if len(report.failed) > FAILURES_SHOWN:
        say(f"... and {len(report.failed) - FAILURES_SHOWN} more (costl status {report.cache}).")


def _tell_merge(report: MergeReport, *, as_json: bool) -> None:
    _say_failed(report)
    say(*report.notes)
    say(
        f"{report.videos} videos with features, {len(report.failed)} without; "
        f"{report.linked} parts linked, {report.copied} copied."
    )
    failed = [_plain(row) for row in report.failed]
    click.echo(json.dumps(vars(report) | {"failed": failed}, default=str) if as_json else report.cache)


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
    _say_failed(report)
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
    if run is None and cache is None:
        raise click.UsageError("Missing option '--cache', for example: costl train --cache feats.h5")
    if launched().count == 1:  # else all would say it
        load_config(*changes["config"], overrides=changes["overrides"])  # so that a slip is told before torch is loaded
    from costl.train import resume, train
    from costl.training.distributed import joined

    with joined() as ranks:
        if run is not None:
            return resume(run, cache=cache, device=device, progress=progress, ranks=ranks)
        assert cache is not None, "one of them is there"
        return train(cache, device=device, progress=progress, ranks=ranks, **changes)


def _tell_training(report: Report, *, as_json: bool) -> None:
    place = "test (legacy: chosen on test)" if report.legacy else "validation"
    score = "" if report.score is None else f" with {report.select} {report.score:.1f} on {place}"
    early = ", stopped early" if report.stopped_early else ""
    say(*report.notes, f"{report.epochs} epochs{early}; epoch {report.best_epoch} is kept{score}.")
    click.echo(json.dumps(vars(report), default=str) if as_json else report.run)


def _evaluate_run(given: Mapping[str, Any], *, as_json: bool) -> None:
    from costl.evaluate import evaluate
    from costl.metrics.output import metrics_table
    from costl.training.distributed import joined

    with Bars() as show, joined() as ranks:
        found = evaluate(**given, progress=show, ranks=ranks)
    if not ranks.first:
        return
    if as_json or found.metrics:
        click.echo(json.dumps(found.metrics, indent=2) if as_json else metrics_table(found.metrics))
    say(*([_how_scored(found.metrics)] if found.metrics else []), *found.notes)
    say(f"Predictions{', metrics' if found.metrics else ''} and a picture: {found.folder}/")


def _evaluate_files(given: dict[str, Any], *, as_json: bool) -> None:
    _refuse_beside("--predictions and --truth", given, "they need no run", but={"predictions", "truth", *SCORING})
    if not {"predictions", "truth"} <= given.keys():
        raise click.UsageError("--predictions and --truth belong together: give both.")
    from costl.metrics.output import metrics_table
    from costl.metrics.score_files import score_files

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
    from costl.pipeline.videos import SUFFIXES

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
    from costl.ask.answer import check_form, check_queries  # before torch is loaded

    check_queries(queries)
    check_form(form, videos)
    from costl.ask.asker import load
    from costl.ask.output import ask_all, write_told

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
    from costl.pipeline.world.sample import WorldSettings

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

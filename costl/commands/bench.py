"""`costl bench`: measures the speed of each stage on this machine, compared with a plain implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from costl.commands.options import ABOVE_ZERO, ANY_PATH, AT_LEAST_ONE, EXISTING_FOLDER, Group, device, quiet
from costl.commands.progress_bars import ProgressBars
from costl.pipeline.encode.names import check_model
from costl.pipeline.options import CHOICES

repeats = click.option(
    "--repeats", type=AT_LEAST_ONE, default=2, show_default=True, help="Repeats of each measurement. The fastest counts."
)
quick = click.option("--quick", is_flag=True, help="Use small inputs, to test that the benchmark runs.")


@click.group(cls=Group)
def bench() -> None:
    """Measure the speed of each stage."""


@bench.command()
@click.option(
    "--videos", type=EXISTING_FOLDER, help="A folder of videos.  [default: rendered videos and a few of the sample world]"
)
@click.option("--model", "models", multiple=True, help="Name of an open_clip model. Repeatable.  [default: ViT-B-32]")
@click.option("--fps", type=ABOVE_ZERO, default=0.5, show_default=True, help="Clips per second, with one frame each.")
@click.option(
    "--decoder",
    type=click.Choice(CHOICES["decoder"]),
    metavar="NAME",
    default="auto",
    show_default=True,
    help="As in costl extract.",
)
@repeats
@quick
@device
@quiet
def extract(**options: Any) -> None:
    """Measure the speed of extraction and of its parts.

    \b
    Examples:
        costl bench extract
        costl bench extract --videos dir/ --repeats 1
        costl bench extract --device cuda --model ViT-B-32 --model ViT-B-16 --model ViT-L-14

    Takes some minutes. The models have random weights, which does not change the speed. On a CPU, decoding and CLIP
    share the cores, so an imitated accelerator is measured as well. Also measures the peak memory of a short and a long
    video, and of few and many videos.
    """
    for model in options["models"]:
        check_model(model)  # reports errors before torch is loaded
    from costl.pipeline.bench.extract import bench_extract

    _print_lines(bench_extract, **options)


@bench.command()
@click.option("--videos", type=EXISTING_FOLDER, help="A folder of videos.  [default: rendered videos]")
@click.option("--fps", type=ABOVE_ZERO, multiple=True, default=(0.5, 1.0, 2.0), show_default=True, help="Repeatable.")
@click.option("--seconds", type=ABOVE_ZERO, default=20.0, show_default=True, help="Seconds of each video, from its start.")
@repeats
@quick
@quiet
def decode(**options: Any) -> None:
    """Measure the speed of each decoder, in CoSTL and by itself.

    \b
    Examples:
        costl bench decode
        costl bench decode --videos dir/ --repeats 1

    Prints sampled frames per CPU second, with one thread each. This includes the CPU time of threads and processes that a
    library starts. Takes some minutes.
    """
    from costl.pipeline.bench.decode import bench_decode

    _print_lines(bench_decode, **options)


@bench.command()
@click.option("--cache", type=ANY_PATH, help="Measure with the tokens of this cache.  [default: random tokens]")
@click.option("--videos", type=AT_LEAST_ONE, default=64, show_default=True, help="Most videos to use.")
@click.option(
    "--folder",
    type=EXISTING_FOLDER,
    default=".",
    show_default=True,
    help="A folder on the disk to measure.",
)
@repeats
@quiet
def cache(**options: Any) -> None:
    """Measure the speed of a cache, and the error of int8.

    \b
    Example:
        costl bench cache --cache feats.h5

    Compares with plain files and memory maps of the same bytes. Needs about 16 MB a video in --folder while it runs, and
    deletes its files at the end.
    """
    from costl.pipeline.bench.cache import bench_cache

    _print_lines(bench_cache, **options)


@bench.command()
@click.option("--hours", type=ABOVE_ZERO, default=100.0, show_default=True, help="Hours of video in the library.")
@click.option(
    "--repeats", type=AT_LEAST_ONE, default=10, show_default=True, help="Repeats of each measurement. The fastest counts."
)
@click.option("--folder", type=EXISTING_FOLDER, default=".", show_default=True, help="A folder on the disk to measure.")
@device
@quiet
def search(**options: Any) -> None:
    """Measure the speed of searching a library.

    \b
    Examples:
        costl bench search
        costl bench search --hours 1000

    Compares the scan of all clips with usearch, torch and numpy, and with reading the same bytes, in one run on random
    unit vectors. Compares the first answer in a new process with loading the text tower of ViT-B/32, which has random
    weights, and measures the memory of answers. Needs 0.6 GB, and 1.87 MB for each hour, in --folder while it runs, and
    deletes its files at the end.
    """
    from costl.bench.search import bench_search

    _print_lines(bench_search, **options)


@bench.command()
@click.option(
    "--videos",
    type=AT_LEAST_ONE,
    default=10148,
    show_default=True,
    help="Videos of the large cache. QVHighlights has 10148.",
)
@quiet
def index(**options: Any) -> None:
    """Measure the speed of a cache of many videos.

    \b
    Example:
        costl bench index

    Measures opening, verifying and reading a cache of many videos, and one of 1,000. First writes both to a temporary
    folder, which takes up to two minutes.
    """
    from costl.bench.index import bench_index

    _print_lines(bench_index, **options)


@bench.command()
@click.option(
    "--videos",
    type=AT_LEAST_ONE,
    multiple=True,
    default=(32, 13),
    show_default=True,
    help="Videos that 32 queries are about. Repeatable.",
)
@repeats
@quick
@device
@quiet
def train(**options: Any) -> None:
    """Measure the speed and memory of the model on one batch.

    \b
    Examples:
        costl bench train
        costl bench train --videos 19
        costl bench train --device cuda

    Prints queries per second, peak memory and operations, for random features of ViT-B/32 and ViT-L/14 with 75 clips a
    video, as in QVHighlights. A batch of 32 queries has 32 videos in QVHighlights and 13 in Charades-STA. Evaluation is
    the forward pass. Training is forward and backward; the step of the optimizer is not measured. Takes a quarter of an
    hour and 18 GB of memory on two cores.
    """
    from costl.bench.train import bench_train

    _print_lines(bench_train, **options)


@bench.command()
def metrics() -> None:
    """Measure the speed of the metrics, and of a loop over queries.

    \b
    Example:
        costl bench metrics

    Both must give the same numbers to the last digit.
    """
    from costl.bench.metrics import bench_metrics

    click.echo("\n".join(bench_metrics()))


def _print_lines(measure: Callable[..., list[str]], *, quiet: bool, **options: Any) -> None:
    with ProgressBars(silent=quiet) as progress:
        lines = measure(**options, progress=progress)
    click.echo("\n".join(lines))

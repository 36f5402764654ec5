"""`costl bench`: measures the speed of each stage on this machine, compared with a plain implementation."""

from __future__ import annotations

from typing import Any

import click

from costl.commands.options import ANY_PATH, FOLDER, Group, as_json, device, quiet
from costl.commands.output import print_result
from costl.commands.progress_bars import ProgressBars


@click.group(cls=Group)
def bench() -> None:
    """Measure the speed of each stage."""


@bench.command()
@click.option(
    "--videos", type=FOLDER, help="A folder of videos.  [default: rendered videos and a few of the sample world]"
)
@click.option("--model", "models", multiple=True, help="Name of an open_clip model. Repeatable.  [default: ViT-B-32]")
@click.option("--weights", help="As in costl extract.  [default: random weights, which take the same time]")
@click.option("--fps", type=float, default=0.5, show_default=True, help="Clips per second.")
@click.option("--decoder", default="auto", show_default=True, help="As in costl extract.")
@click.option("--batch", type=int, help="Frames per batch.  [default: what suits the device]")
@click.option(
    "--imitate", "rate", type=float, help="Frames per second of the imitated accelerator.  [default: 4 x decoding]"
)
@click.option("--repeats", default=2, show_default=True, help="Repeats of each measurement. The best counts.")
@click.option("--quick", is_flag=True, help="Use tiny videos and a tiny CLIP, to test that the benchmark runs.")
@device
@quiet
@as_json
def extract(quiet: bool, as_json: bool, **options: Any) -> None:
    """Measure extraction, decoding, CLIP, and a plain loop.

    \b
    Examples:
        costl bench extract
        costl bench extract --videos dir/ --repeats 1
        costl bench extract --device cuda --model ViT-B-32 --model ViT-B-16 --model ViT-L-14

    Takes some minutes. The first call renders videos and stores them in the temporary folder. On a CPU, decoding and CLIP
    share the cores, so an imitated accelerator is measured as well. Also measures the peak memory of a video and of a longer
    one, and of few videos and of many.
    """
    from costl.pipeline.bench.extract import bench_extract

    with ProgressBars(silent=quiet) as progress:
        result = bench_extract(**options, progress=progress)
    print_result(result, as_json=as_json)


@bench.command()
@click.option("--videos", type=FOLDER, help="A folder of videos.  [default: rendered videos]")
@click.option("--fps", type=float, multiple=True, default=(0.5, 1.0, 2.0), show_default=True, help="Repeatable.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Seconds of each video, from its start.")
@click.option("--repeats", default=2, show_default=True, help="Repeats of each measurement. The best counts.")
@click.option("--quick", is_flag=True, help="Use tiny videos, to test that the benchmark runs.")
@quiet
@as_json
def decode(quiet: bool, as_json: bool, **options: Any) -> None:
    """Measure CoSTL's decoders and each library's own loop.

    \b
    Examples:
        costl bench decode
        costl bench decode --videos dir/ --repeats 1

    Prints sampled frames per CPU second, with one thread each. This includes the CPU time of threads and processes that a
    library starts. Takes some minutes.
    """
    from costl.pipeline.bench.decode import bench_decode

    with ProgressBars(silent=quiet) as progress:
        result = bench_decode(**options, progress=progress)
    print_result(result, as_json=as_json)


@bench.command()
@click.option("--cache", type=ANY_PATH, help="Measure with the tokens of this cache.  [default: random tokens]")
@click.option("--videos", default=64, show_default=True, help="Most videos to use.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of each measurement. The table shows the median.")
@click.option("--folder", type=FOLDER, default=".", show_default=True, help="A folder on the disk to measure.")
@quiet
@as_json
def cache(quiet: bool, as_json: bool, **options: Any) -> None:
    """Measure writing and reading a cache, and the error of int8.

    \b
    Example:
        costl bench cache --cache feats.h5

    Compares with plain files and memory maps of the same bytes. Needs about 16 MB a video in --folder while it runs, and
    deletes its files at the end.
    """
    from costl.pipeline.bench.cache import bench_cache

    with ProgressBars(silent=quiet) as progress:
        result = bench_cache(**options, progress=progress)
    print_result(result, as_json=as_json)


@bench.command()
@click.option("--videos", default=10148, show_default=True, help="Videos of the large cache. QVHighlights has 10148.")
@quiet
@as_json
def index(videos: int, quiet: bool, as_json: bool) -> None:
    """Measure how the cache scales with the number of videos.

    \b
    Example:
        costl bench index

    Measures opening, verifying and reading a cache of many videos, and one of 1,000. First writes both to a temporary
    folder, which takes up to two minutes.
    """
    from costl.bench.index import bench_index

    with ProgressBars(silent=quiet) as progress:
        result = bench_index(videos=videos, progress=progress)
    print_result(result, as_json=as_json)


@bench.command()
@click.option(
    "--videos",
    type=int,
    multiple=True,
    default=(32, 13),
    show_default=True,
    help="Videos that 32 queries are about. Repeatable.",
)
@click.option("--rounds", default=3, show_default=True, help="Rounds of each measurement. The table shows the median.")
@click.option("--threads", type=int, help="CPU threads.  [default: as many as torch takes]")
@click.option("--quick", is_flag=True, help="Use tiny shapes, to test that the benchmark runs.")
@device
@quiet
@as_json
def train(quiet: bool, as_json: bool, **options: Any) -> None:
    """Measure the model and both baselines on one batch.

    \b
    Examples:
        costl bench train
        costl bench train --threads 1 --videos 19
        costl bench train --device cuda --json

    Prints queries per second, peak memory and operations, for random features of ViT-B/32 and ViT-L/14 with 75 clips a
    video, as in QVHighlights. A batch of 32 queries has 32 videos in QVHighlights and 13 in Charades-STA. Evaluation does
    the forward pass; training does forward + backward, and the optimizer, which is not measured. Takes a quarter of an hour
    and 16 GB of memory on two cores.
    """
    from costl.bench.train import bench_train

    with ProgressBars(silent=quiet) as progress:
        result = bench_train(**options, progress=progress)
    print_result(result, as_json=as_json)


@bench.command()
@click.option(
    "--predictions", type=ANY_PATH, help="A submission file.  [default: synthetic, as large as QVHighlights val]"
)
@click.option("--truth", type=ANY_PATH, help="The annotations that --predictions answer.")
@click.option("--seed", default=0, show_default=True, help="Another seed makes other synthetic predictions.")
@as_json
def metrics(as_json: bool, **options: Any) -> None:
    """Measure the official metrics and a plain loop over queries.

    \b
    Example:
        costl bench metrics

    Both must give the same numbers to the last digit.
    """
    from costl.bench.metrics import bench_metrics

    print_result(bench_metrics(**options), as_json=as_json)

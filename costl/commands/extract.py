"""`costl extract`: extracts features from videos and writes them to a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.options import ANY_PATH, Decorator, check_devices, option_group, out, quiet
from costl.commands.output import finish_command, print_event, print_result
from costl.commands.progress_bars import ProgressBars, ProgressEvents
from costl.pipeline.options import CHOICES


def _choice(name: str, help: str) -> Decorator:
    return click.option(f"--{name}", type=click.Choice(CHOICES[name]), metavar="NAME", help=help)


feature_options = option_group(
    click.option("--model", help="An open_clip model (see costl data models).  [default: ViT-B-32]"),
    click.option("--weights", help="A tag, a file, or a folder.  [default: laion2b_s34b_b79k]"),
    click.option("--fps", type=float, help="Clips per second, with one frame each.  [default: 0.5]"),
    _choice(
        "decoder",
        "decord, pyav, torchcodec, torchcodec:cuda, or auto: pyav, the fastest. All but torchcodec:cuda give the same "
        "frames.  [default: decord]",
    ),
    _choice("sampling", "Which frame of a clip: centre, or cheapest to decode.  [default: centre]"),
    _choice("resize", "Where frames are resized. device: exactly as CLIP does it. decoder: with less memory.  [default: device]"),
    _choice("dtype", "Number format of tokens: float16, or int8 with half the size.  [default: float16]"),
    _choice(
        "tokens",
        "all, or cls: no patches, for models without a spatial encoder.  [default: all]",
    ),
)
run_options = option_group(
    click.option("--workers", type=int, help="Decode processes.  [default: one for each core]"),
    click.option("--batch", type=int, help="Frames per batch.  [default: 8 on a CPU, 256 on a GPU]"),
    click.option("--precision", metavar="NAME", help="fp32, fp16 or bf16.  [default: fp16 on a GPU, fp32 on a CPU]"),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=check_devices,
        help="cpu, cuda, mps, or several: cuda:0,cuda:1. auto: cuda if any.",
    ),
    click.option(
        "--cluster",
        metavar="ADDRESS",
        help="Use the workers of a Dask scheduler, such as tcp://host:8786. Needs the extra: pip install 'costl[cluster]'",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Extract only one of N parts of the folder, such as 2/4. costl cache merge joins them.",
    ),
)


@click.command()
@click.option("--videos", type=ANY_PATH, help="A folder of videos, with the folders in it, or one video.")
@out("The cache to write or complete.", default="feats.h5", show_default=True)
@click.option("--annotations", type=ANY_PATH, help="A folder or file of annotations.  [default: those next to the videos]")
@click.option(
    "--allow-missing-videos",
    is_flag=True,
    help="Continue without videos that are missing. Their queries score 0.",
)
@feature_options
@run_options
@quiet
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines, the last one `done`.")
def extract(videos: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Store CLIP features of videos and sentences in a cache.

    \b
    Examples:
        costl extract --videos dir/
        costl extract --videos dir/ --dtype int8

    Writes feats.h5 and the folder feats.h5.parts, which belong together. If you run it again, it extracts only what is
    missing or has changed. A costl.yaml next to the videos or annotations may set the options from --model to --tokens;
    options given here win. The progress bar shows the bottleneck: decoding, CLIP or the disk.

    Exit code 1: finished, but some videos failed or are missing (costl cache status feats.h5 lists them), or a moment lies
    after the end of its video.
    """
    if videos is None:
        raise click.UsageError("Missing option '--videos', for example: costl extract --videos dir/")
    from costl.pipeline.extract import extract

    with ProgressBars(silent=quiet) as progress:
        report = extract(videos, **options, progress=ProgressEvents(progress) if as_json else progress)
    if as_json:
        print_event("done", **report.data())
        finish_command(report)
    else:
        print_result(report)

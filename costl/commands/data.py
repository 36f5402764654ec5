"""`costl data`: writes a sample world, lists encoders, imports published features, and exports a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.options import (
    ANY_PATH,
    FOLDER,
    Group,
    as_json,
    device,
    named_folders,
    out,
    published_features,
    quiet,
    world,
    world_settings,
)
from costl.commands.output import print_messages
from costl.commands.progress_bars import ProgressBars, run_and_print
from costl.pipeline.progress import Progress


@click.group(cls=Group)
def data() -> None:
    """Make samples, list encoders, import features, export models."""


@data.command()
@click.argument("folder", type=FOLDER)
@world
@quiet
def sample(folder: Path, quiet: bool, **options: Any) -> None:
    """Write a sample world: short videos, annotations, a small CLIP.

    \b
    Example:
        costl data sample dir/ --videos train=40 --videos val=10
    """
    from costl.pipeline.world.write_world import write_sample

    settings = world_settings(**options)
    with ProgressBars(silent=quiet) as progress:
        write_sample(folder, settings=settings, progress=lambda done, total: progress(Progress("render", done, total)))
    click.echo(folder)


@data.command()
@click.argument("name", default="", metavar="[NAME]")
@click.option("--measure", is_flag=True, help="Measure the time of a frame on this machine, with random weights.")
@device
@quiet
@as_json
def models(name: str, **options: Any) -> None:
    """List the models that can encode videos.

    \b
    Examples:
        costl data models
        costl data models siglip2
        costl data models ViT-B-32 --measure

    NAME is a model of open_clip, or a part of several names. Input and patches are height x width. Width: numbers in a token.
    image M and text M: millions of parameters of the two towers; text is empty where the library transformers has the tower.
    MB/hour: features of an hour of video with the default settings. ms/frame and s/hour: what --measure measures.

    The tags are for costl extract --weights. The weights of a tag are downloaded when they are first used.
    """
    from costl.pipeline.encode.catalog import list_models

    run_and_print(list_models, pattern=name, **options)


@data.command("import")
@click.option("--annotations", required=True, type=ANY_PATH, help="Folder or file of annotations.")
@published_features(required=True)
@out("The cache to write or complete.", default="feats.h5", show_default=True)
@click.option("--fps", type=float, help="Features per second.  [default: 0.5]")
@click.option("--allow-missing", is_flag=True, help="Record videos without a file as failed, and continue.")
@quiet
@as_json
def import_(streams: tuple[str, ...], **options: Any) -> None:
    """Make a cache of features that others have published.

    \b
    Example, with the features that Moment-DETR published:
        costl prepare qvhighlights --annotations official/ --allow-missing-videos --out qvh/
        costl data import --annotations qvh/ --features slowfast=slowfast_features \\
            --features clip=clip_features --joint clip --text clip_text_features
        costl train --cache feats.h5

    Joins the --features of each clip in the order in which you give them. Checks every file before it writes anything.
    These features have no patches, so CoSTL trains without its spatial encoder (spatial.steps=0).

    Exit code 1: finished, but some videos are missing or failed (costl cache status feats.h5 lists them).
    """
    from costl.pipeline.published.import_features import import_features

    run_and_print(import_features, features=named_folders(streams), **options)


@data.command()
@click.argument("run", type=FOLDER)
@click.argument("folder", type=FOLDER)
@click.option("--without-clip", is_flag=True, help="Do not copy your own CLIP weights into FOLDER.")
def export(run: Path, folder: Path, without_clip: bool) -> None:
    """Export a trained model for others.

    \b
    Example:
        costl data export runs/feats-20260131-120000 my-model/
        costl predict holiday.mp4 "a dog catches a ball" --model my-model/

    Writes weights, settings and a model card in the layout of the Hugging Face Hub.
    """
    from costl.training.run_folder import read_run

    read_run(run)  # reports errors before torch is loaded
    from costl.ask.export_model import export

    notes = export(run, folder, with_clip=not without_clip)
    click.echo(folder)
    print_messages(*notes)

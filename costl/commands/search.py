"""`costl search`: the moments of a whole library of videos that match sentences or pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from costl.commands.options import ANY_PATH, AT_LEAST_ONE, FOLDER, device, out, overwrite, quiet
from costl.commands.output import print_messages
from costl.commands.progress_bars import ProgressBars
from costl.search.filters import Filters
from costl.search.formats import FORMATS

if TYPE_CHECKING:
    from costl.search.library import Library

_PROMPT = "Search: "


def _day(_context: click.Context, _parameter: click.Parameter, value: datetime | None) -> date | None:
    return value.date() if value else None


@click.command()
@click.argument("sentences", nargs=-1, metavar="[SENTENCE]...")
@click.option("--videos", type=FOLDER, help="Folder of videos, with the folders in it. It is indexed first, where it has changed.")
@click.option("--cache", type=ANY_PATH, help="Search a cache of costl extract instead.")
@click.option("--run", help="A trained model that finds the best moments again: a run, an export, hf://user/name, or none.")
@click.option("--image", "images", multiple=True, type=ANY_PATH, help="Search for what this picture shows. Repeatable.")
@click.option("--top", type=AT_LEAST_ONE, default=10, show_default=True, help="Number of moments for each sentence.")
@click.option("--min-score", type=click.FloatRange(0, 1), help="Lowest score of an answer.  [default: see the docs]")
@click.option("--all", "show_all", is_flag=True, help="Also show, in grey, moments below the lowest score.")
@click.option("--within", default="", metavar="PATH", help="Only videos whose path in the folder begins with this, such as 2026/.")
@click.option("--after", type=click.DateTime(["%Y-%m-%d"]), callback=_day, metavar="DATE", help="Only videos of this day or later.")
@click.option("--before", type=click.DateTime(["%Y-%m-%d"]), callback=_day, metavar="DATE", help="Only videos from before this day.")
@click.option("--longer-than", default=0.0, type=click.FloatRange(0), metavar="SECONDS", help="Only videos longer than this.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), metavar="NAME", help=f"{', '.join(FORMATS)}.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@out("Write to this file, or to a folder with a file for each video.")
@click.option("--cut", "cut_folder", type=FOLDER, help="Write each moment as a video file into this folder.")
@click.option("--picture", type=ANY_PATH, help="Draw the first frames of the moments into this PNG file.")
@click.option("--model", help="The encoder of a new index (costl data models).  [default: that of costl extract]")
@click.option("--weights", help="Its weights: a tag, a file or a folder.")
@click.option("--remove-index", is_flag=True, help="Remove the index of --videos, and end.")
@overwrite
@device
@quiet
def search(
    sentences: tuple[str, ...],
    videos: Path | None,
    cache: Path | None,
    quiet: bool,
    remove_index: bool,
    **options: Any,
) -> None:
    """Find moments in a folder of videos.

    \b
    Examples:
        costl search "a dog catches a ball" --videos ~/Videos
        costl search "a dog catches a ball" "people laugh" --cache feats.h5 --top 20
        costl search "a dog" --videos ~/Videos --within 2026/ --longer-than 60 --out hits.edl

    Needs no training. Without a sentence it asks for one after the other, or reads a line each from standard input. The date of
    a video is the one in its path, such as 2026-05-01, or else that of the last change of its file. The index is stored in
    FOLDER/.costl, or in your cache folder if that cannot be written.
    """

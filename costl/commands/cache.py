"""`costl cache`: inspects, verifies, packs, merges, cleans and completes caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from costl.commands.options import ANY_PATH, Group, as_json, device, out, quiet
from costl.commands.output import print_result
from costl.commands.progress_bars import ProgressBars, run_and_print


@click.group(cls=Group)
def cache() -> None:
    """Check, complete, merge, pack or clean up a cache."""


@cache.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--all", "everything", is_flag=True, help="Print a line for every video.")
@as_json
def status(cache: Path, everything: bool, as_json: bool) -> None:
    """List the videos without features, and why.

    \b
    Example:
        costl cache status feats.h5

    --all and --json list every video.
    """
    from costl.pipeline.cache.inspect import Status, no_queries_message
    from costl.pipeline.cache.reader import CacheReader
    from costl.pipeline.run.history import describe_run, last_run

    reader = CacheReader(cache)
    notes = [describe_run(last_run(cache) or {}), "" if reader.splits else no_queries_message(cache)]
    print_result(Status(reader.rows, everything=everything, notes=[note for note in notes if note]), as_json=as_json)


@cache.command()
@click.argument("path", metavar="CACHE", type=ANY_PATH)
@click.option("--quick", is_flag=True, help="Check only sizes and first bytes. This does not find a flipped bit.")
@quiet
@as_json
def verify(**options: Any) -> None:
    """Compare every file of a cache with its checksum.

    \b
    Examples:
        costl cache verify feats.h5
        costl cache verify feats.h5 --quick

    Exit code 3: a file is damaged. Delete it and run costl extract (or costl data import) again, which writes only this
    file.
    """
    from costl.pipeline.cache.verify import verify

    run_and_print(verify, **options)


@cache.command()
@click.argument("cache", type=ANY_PATH)
@click.argument("video", required=False)
@as_json
def inspect(cache: Path, video: str | None, as_json: bool) -> None:
    """Describe a cache, or one of its videos.

    \b
    Examples:
        costl cache inspect feats.h5
        costl cache inspect feats.h5 holiday

    Prints the settings of the extraction, the number of features, and the annotations. For a VIDEO, named as in the
    annotations, prints its times, its tokens, and the position of its bytes in the file.
    """
    from costl.pipeline.cache.inspect import inspect_cache, inspect_video

    print_result(inspect_video(cache, video) if video else inspect_cache(cache), as_json=as_json)


@cache.command()
@click.argument("cache", type=ANY_PATH)
@out("The file to write.", required=True)
@quiet
def pack(cache: Path, out: Path, quiet: bool) -> None:
    """Pack a cache into one file, for moving it.

    \b
    Examples:
        costl cache pack feats.h5 --out feats.packed.h5
        costl train --cache feats.packed.h5

    Compares every file with its checksum before it writes anything. All commands except costl extract can read the packed
    file. A run that was trained on the cache can be evaluated on the packed file.
    """
    from costl.pipeline.cache.pack import pack

    with ProgressBars(silent=quiet) as progress:
        click.echo(pack(cache, out=out, progress=progress))


@cache.command()
@click.argument("cache", type=ANY_PATH)
@out("The cache to write. Its parts go into a folder next to it.", required=True)
@quiet
def unpack(cache: Path, out: Path, quiet: bool) -> None:
    """Unpack a packed cache, so that costl extract can add to it.

    \b
    Example:
        costl cache unpack feats.packed.h5 --out feats.h5

    Writes every file as it was before packing, byte for byte. After an interruption, the same command continues. Does not
    delete the packed file.
    """
    from costl.pipeline.cache.pack import unpack

    with ProgressBars(silent=quiet) as progress:
        click.echo(unpack(cache, out=out, progress=progress))


@cache.command()
@click.argument("out", type=ANY_PATH)
@click.argument("caches", type=ANY_PATH, nargs=-1, required=True)
@quiet
@as_json
def merge(**options: Any) -> None:
    """Merge caches, such as those of several machines, into OUT.

    \b
    Example:
        costl extract --videos dir/ --shard 1/2 --out a.h5     # one machine
        costl extract --videos dir/ --shard 2/2 --out b.h5     # another
        costl cache merge feats.h5 a.h5 b.h5

    The result is the same as if one machine had extracted all videos, byte for byte. Files are hard links if the file
    system allows it, otherwise verified copies. After an interruption, or when another share is ready, the same command
    continues.

    Exit code 1: merged, but some videos have no features. 3: the settings of the caches differ.
    """
    from costl.pipeline.cache.merge import merge

    run_and_print(merge, **options)


@cache.command()
@click.argument("cache", type=ANY_PATH)
@click.option("--delete", is_flag=True, help="Delete the files. Without it they are only listed.")
@as_json
def gc(cache: Path, delete: bool, as_json: bool) -> None:
    """List files that a cache no longer needs, or delete them.

    \b
    Examples:
        costl cache gc feats.h5
        costl cache gc feats.h5 --delete

    These are features of videos that were removed from the folder, text features of annotations that changed, and
    partial files of killed runs. Keeps every file that CoSTL has perhaps not written. Deletes nothing while costl
    extract is writing.
    """
    from costl.pipeline.cache.gc import collect_garbage

    print_result(collect_garbage(cache, delete=delete), as_json=as_json)


@cache.command("add-queries")
@click.argument("cache", type=ANY_PATH)
@click.option("--annotations", required=True, type=ANY_PATH, help="A JSONL file, which becomes a split, or a folder.")
@click.option("--weights", help="Where the cache's CLIP is, if it has moved.")
@click.option(
    "--allow-missing-videos",
    is_flag=True,
    help="Continue without annotated videos that have no features. Their queries score 0.",
)
@device
@quiet
@as_json
def add_queries(**options: Any) -> None:
    """Add annotations and the text features of their queries.

    \b
    Example:
        costl cache add-queries feats.h5 --annotations more.jsonl

    Adds the split "more", or replaces the split of this name. Does not need the videos.

    Exit code 1: added, but some annotated videos have no features.
    """
    from costl.pipeline.add_queries import add_queries

    run_and_print(add_queries, **options)

"""`costl search`: the moments of a whole library of videos that match sentences or pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from costl.commands.options import ANY_PATH, FOLDER, device, out, overwrite, quiet
from costl.commands.output import print_messages
from costl.commands.progress_bars import ProgressBars
from costl.pipeline.formats.files import publish
from costl.search.export.formats import FORMATS
from costl.search.filters import Filters

if TYPE_CHECKING:
    from costl.search.hits import SearchResult

DAY = click.DateTime(["%Y-%m-%d"])


def _day(_context: click.Context, _parameter: click.Parameter, value: datetime | None) -> date | None:
    return value.date() if value else None


@click.command()
@click.argument("sentences", nargs=-1, metavar="[SENTENCE]...")
@click.option("--videos", type=FOLDER, help="Folder of videos. Those that are new or changed are indexed first.")
@click.option("--cache", type=ANY_PATH, help="Search a cache of costl extract instead.")
@click.option("--image", "images", multiple=True, type=ANY_PATH, help="Picture to search for, by CLIP alone. Repeatable.")
@click.option("--run", metavar="MODEL", help="Trained model that refines the answers of CLIP (see predict), or none.")
@click.option("--top", type=int, default=10, show_default=True, help="Number of moments for each sentence.")
@click.option("--min-score", type=float, help="Lowest score of an answer, 0 to 1.")
@click.option("--all", "show_all", is_flag=True, help="Also show moments below the lowest score.")
@click.option("--within", default="", metavar="PATH", help="Only videos in this subfolder, such as 2026/.")
@click.option("--after", type=DAY, callback=_day, metavar="DATE", help="Only videos of this day or later.")
@click.option("--before", type=DAY, callback=_day, metavar="DATE", help="Only videos of earlier days.")
@click.option("--longer-than", default=0.0, metavar="SECONDS", help="Only videos that last longer.")
@click.option("--format", "output_format", type=click.Choice(FORMATS), metavar="NAME", help=f"{', '.join(FORMATS)}.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@out("File to write, or a folder with a file for each video.")
@click.option("--cut", "cut_folder", type=FOLDER, help="Folder to write each moment to as a video.")
@click.option("--picture", type=ANY_PATH, help="Draw the moments into this PNG file.")
@click.option("--model", help="Encoder of a new index (see costl data models).")
@click.option("--weights", help="Its weights: a tag, a file or a folder.")
@click.option(
    "--keep", default="20GB", metavar="SIZE", help="Most disk for the patch tokens of a trained model.  [default: 20GB]"
)
@click.option("--remove-index", is_flag=True, help="Remove the index of --videos, and end.")
@click.option("--cluster", metavar="ADDRESS", help="Use the workers of a Dask scheduler (see extract).")
@overwrite
@device
@quiet
def search(
    sentences: tuple[str, ...],
    videos: Path | None,
    cache: Path | None,
    images: tuple[Path, ...],
    run: str | None,
    keep: str,
    top: int,
    min_score: float | None,
    within: str,
    after: date | None,
    before: date | None,
    longer_than: float,
    model: str | None,
    weights: str | None,
    cluster: str | None,
    device: str,
    quiet: bool,
    remove_index: bool,
    **outputs: Any,
) -> None:
    """Find moments in a folder of videos.

    \b
    Examples:
        costl search "a dog on a beach" --videos ~/Videos
        costl search "a dog catches a ball" "a child on a swing" --cache feats.h5 --top 20
        costl search "a dog" --videos ~/Videos --within 2026/ --longer-than 60 --out hits.edl
        costl search --image frame.jpg --videos ~/Videos

    Needs no training: CLIP answers. The newest run in runs/ refines its answers, if it has the encoder of the index and was
    better than CLIP alone on its validation videos (--run none: never). Without a sentence it asks for one after the other,
    or reads them from standard input. The index is stored in FOLDER/.costl, or in your cache folder if that cannot be
    written. The date of a video is the one in its path, such as 2026-05-01, or else that of its last change.
    """
    if remove_index:
        _remove_index(videos)
        return
    path = videos or cache
    if path is None or (videos and cache):
        raise click.UsageError("name either a folder or a cache: --videos DIR or --cache FILE.")
    from costl.ask.model_folder import model_or_zero_shot
    from costl.pipeline.library.store_limit import parse_size

    keep_bytes = parse_size(keep)
    model_folder = model_or_zero_shot(run) if run else None  # reports errors before torch is loaded
    write = _Outputs(**outputs)  # refuses files before anything is loaded
    is_interactive = not sentences and not images and is_terminal()
    if is_interactive and write.is_to_files:
        raise click.UsageError("what is written to files needs a sentence. Give one, or leave out --out, --cut and --picture.")
    filters = Filters(within, after, before, longer_than)
    from costl.pipeline.formats.image_file import read_image
    from costl.search.open_library import open_library

    for image in images:
        read_image(image)  # refuses it before anything is indexed

    with ProgressBars(silent=quiet) as progress:
        library = open_library(
            path,
            run=model_folder,
            keep_bytes=keep_bytes,
            model=model,
            weights=weights,
            cluster=cluster,
            device=device,
            progress=progress,
        )
    print_messages(*library.messages())
    failures: list[str] = []
    options: dict[str, Any] = {"images": images, "top": top, "min_score": min_score, "filters": filters}
    for queries in [list(sentences)] if images else _queries(sentences, is_interactive=is_interactive):
        with ProgressBars(silent=quiet) as progress:
            results = library.search_all(queries, **options, progress=progress)
        failures += write(results, quiet=quiet)
    print_messages(*failures)
    if failures:
        raise SystemExit(1)


def is_terminal() -> bool:
    """Whether a person types the input."""
    return sys.stdin.isatty()


def _remove_index(videos: Path | None) -> None:
    from costl.pipeline.library.folder import remove_index

    if videos is None:
        raise click.UsageError("--remove-index needs the folder of the videos: --videos DIR.")
    print_messages(f"Removed: {remove_index(videos)}")


def _queries(sentences: Sequence[str], *, is_interactive: bool) -> Iterator[list[str]]:
    """The sentences of the command; without one, each line that is typed, or all lines of standard input."""
    if sentences:
        yield list(sentences)
    elif is_interactive:
        with suppress(click.Abort):  # Ctrl-D
            while sentence := click.prompt("Search", default="", show_default=False, err=True).strip():
                yield [sentence]
    else:
        yield [line.strip() for line in sys.stdin if line.strip()]


class _Outputs:
    """Where results are written: as a text, as cut videos, and as a picture."""

    def __init__(
        self,
        *,
        output_format: str | None,
        as_json: bool,
        out: Path | None,
        cut_folder: Path | None,
        picture: Path | None,
        show_all: bool,
        overwrite: bool,
    ):
        from costl.ask.formats import refuse_outputs
        from costl.search.export.write import choose_hit_format, refuse_output

        self._format = choose_hit_format("json" if as_json else output_format, out)
        refuse_output(out, self._format, overwrite=overwrite)
        refuse_outputs(None, picture, inputs=(), overwrite=overwrite)
        self._out = out
        self._cut_folder = cut_folder
        self._picture = picture
        self._show_all = show_all
        self._overwrite = overwrite

    @property
    def is_to_files(self) -> bool:
        """Whether anything is written to a file."""
        return any((self._out, self._cut_folder, self._picture))

    def __call__(self, results: Sequence[SearchResult], *, quiet: bool) -> list[str]:
        """Writes the results; returns what could not be written."""
        from costl.search.export.write import write_hits

        files, failures = write_hits(
            results,
            output_format=self._format,
            out=self._out,
            print_text=lambda text: click.echo(text, nl=False),
            overwrite=self._overwrite,
            show_below=self._show_all,
            grey=lambda line: click.style(line, dim=True),
        )
        if self._cut_folder is not None:
            from costl.search.export.cuts import cut_hits

            with ProgressBars(silent=quiet) as progress:
                files += cut_hits(results, self._cut_folder, overwrite=self._overwrite, progress=progress)
        if self._picture is not None:
            from costl.search.export.picture import draw_results

            publish(self._picture, draw_results(results))
            files.append(self._picture)
        print_messages(*(f"Written: {path}" for path in files))
        return failures

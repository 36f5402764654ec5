"""Options that several commands share, and the class of command groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from costl.pipeline.device import check_device

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
AT_LEAST_ONE = click.IntRange(min=1, max=100_000)
Decorator = Callable[[Any], Any]


class _AboveZero(click.FloatRange):
    """A number above zero. Refuses nan and infinity, which a FloatRange lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises BadParameter for any other text."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number above zero.", param, ctx)
        return number


ABOVE_ZERO = _AboveZero(min=0, min_open=True)


class Group(click.Group):
    """A command group that lists its commands in the order they were added, without cutting off their summaries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order in which the commands were added."""
        return list(self.commands)

    def sections(self) -> dict[str, list[str]]:
        """The names of the commands under each heading of the help."""
        return {"Commands": list(self.commands)}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section for each heading, with the summaries of its commands."""
        width = max(map(len, self.commands))
        for title, names in self.sections().items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", self.commands[name].get_short_help_str(1000)) for name in names])


def option_group(*options: Decorator) -> Decorator:
    """One decorator for several options. The help shows them in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def out(help: str, **attributes: Any) -> Decorator:
    """The option -o, --out."""
    return click.option("-o", "--out", help=help, **{"type": ANY_PATH} | attributes)


def _only_one(context: click.Context, _: click.Parameter, value: Any) -> Any:
    """Refuses --table together with --json, whichever comes first."""
    if value and (context.params.get("table") or context.params.get("as_json")):
        raise click.UsageError("--table and --json cannot be combined. Choose one.")
    return value


def check_devices(_context: click.Context, _parameter: click.Parameter, names: str) -> str:
    """Refuses what is not the name of a device, or of several."""
    for name in names.split(","):
        check_device(name.strip())
    return names


device = click.option(
    "--device",
    default="auto",
    show_default=True,
    callback=check_devices,
    help="cpu, cuda, cuda:1 and so on, or mps. auto: cuda if there is one.",
)
as_json = click.option("--json", "as_json", is_flag=True, callback=_only_one, help="Print JSON to standard output.")
paper_table = click.option(
    "--table",
    type=click.Choice(["md", "latex"]),
    callback=_only_one,
    help="Print a table for a paper instead, in Markdown or LaTeX (booktabs).",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace files that are not an earlier output of this command.")
required_cache = click.option("--cache", required=True, type=ANY_PATH, help="The cache that costl extract wrote.")
run_cache = click.option("--cache", type=ANY_PATH, help="The run's cache, if it has moved.")
config_files = click.option(
    "--config",
    type=ANY_PATH,
    multiple=True,
    help="A YAML file with the settings to change, or the name of a benchmark, such as charades. Repeatable.",
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change one setting of training, such as train.epochs=20. Repeatable.",
)
scoring = option_group(
    click.option(
        "--benchmark",
        metavar="NAME",
        help="Score by the rules of youtube-highlights, qvhighlights, charades, tacos or tvsum.  [default: those of the run, or "
        "those that fit the annotations]",
    ),
    click.option("--official", is_flag=True, help="Reproduce the benchmark's published evaluator to the last digit."),
)
trained_model = option_group(
    click.option(
        "--model",
        "--run",
        "model",
        help="A run, a folder from costl data export, or hf://user/name.  [default: the newest run in runs/]",
    ),
    click.option("--weights", help="Where the CLIP weights of the model are, if they have moved."),
    click.option(
        "--cache-dir", type=FOLDER, help="Where to store the features of the videos.  [default: a folder in your home]"
    ),
    device,
)
world = option_group(
    click.option(
        "--videos",
        "counts",
        multiple=True,
        metavar="SPLIT=N",
        help="Number of videos of a split, such as train=40. Repeatable.",
    ),
    click.option("--queries", type=int, help="Number of queries for each video of every split but train."),
    click.option("--seed", type=int, help="Seed of the random world."),
    click.option("--hard", is_flag=True, default=None, help="Render eight objects instead of five, and make them more alike."),
    click.option(
        "--fine", is_flag=True, default=None, help="Let objects grow and shrink, and add the split test_unseen_relation."
    ),
)


def published_features(*, required: bool) -> Decorator:
    """The options of features that others have published."""
    return option_group(
        click.option(
            "--features",
            "streams",
            required=required,
            multiple=True,
            metavar="NAME=DIR",
            help="Folder with VID.npz (`features`) or VID.npy, [clips channels], for every video. Repeatable.",
        ),
        click.option(
            "--text", required=required, type=FOLDER, help="Folder with qidQID.npz, QID.npz or .npy for every query."
        ),
        click.option(
            "--joint", metavar="NAME", help="Which of the --features share CLIP's space with a sentence's `pooler_output`."
        ),
    )


def named_folders(streams: Iterable[str]) -> dict[str, Path]:
    """The folder of each stream from the values of --features."""
    folders: dict[str, Path] = {}
    for stream in streams:
        name, _, folder = stream.partition("=")
        if not (name and folder) or name in folders:
            hint = "named twice" if name in folders else "expected NAME=DIR, such as clip=clip_features"
            raise click.BadParameter(f"{stream!r}: {hint}.", param_hint="--features")
        folders[name] = Path(folder)
    return folders


def world_settings(*, counts: Iterable[str], **options: Any) -> Any:
    """The settings of the sample world from the options of `world`."""
    from costl.pipeline.world.write_world import WorldSettings

    set_options = {name: value for name, value in options.items() if value is not None}
    videos = WorldSettings(fine=bool(options["fine"])).videos | dict(map(_videos_of_split, counts))
    return WorldSettings(**set_options, videos=videos)


def _videos_of_split(text: str) -> tuple[str, int]:
    from costl.pipeline.world.write_world import FINE_VIDEOS

    split, _, count = text.partition("=")
    if split not in FINE_VIDEOS or not count.isdecimal():
        expected = "expected train=N, val=N, test=N, test_unseen=N or, with --fine, test_unseen_relation=N"
        raise click.BadParameter(f"{text!r}: {expected}.", param_hint="--videos")
    return split, int(count)

"""The old names of commands and options. Using one is an error that gives the new name."""

from __future__ import annotations

from collections.abc import Sequence

import click

COMMANDS = {
    "sample": "costl data sample",
    "import": "costl data import",
    "export": "costl data export",
    "status": "costl cache status",
    "verify": "costl cache verify",
    "inspect": "costl cache inspect",
    "pack": "costl cache pack",
    "unpack": "costl cache unpack",
    "merge": "costl cache merge",
    "gc": "costl cache gc",
    "ablate": "costl study ablate",
    "repeat": "costl study repeat",
    "compare": "costl study compare",
    "diagnose": "costl study diagnose",
}
OPTIONS = {("extract", "--cache"): "costl cache add-queries"}


def refuse_old_name(arguments: Sequence[str]) -> None:
    """Raises a usage error with the new name if the first argument is an old command, or if an option is old."""
    name, *others = arguments
    if name in COMMANDS:
        raise click.UsageError(f"costl {name} is now {COMMANDS[name]}.")
    for (command, option), new in OPTIONS.items():
        if command == name and any(argument.partition("=")[0] == option for argument in others):
            raise click.UsageError(f"costl {command} {option} is now {new}.")

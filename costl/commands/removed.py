"""Options that earlier versions had. Using one is an error with the next step."""

from __future__ import annotations

from collections.abc import Sequence

import click

REMOVED = {
    ("extract", "--cache"): "Run costl cache add-queries.",
    ("extract", "--layers"): "A cache stores the tokens of CLIP's last block only: leave the option out.",
    ("extract", "--compile"): "It made an extraction no faster: leave it out.",
}


def refuse_removed_options(command: str, arguments: Sequence[str]) -> None:
    """Raises a usage error with the next step if an option of this command is gone."""
    for option in [argument.partition("=")[0] for argument in arguments]:
        if (command, option) in REMOVED:
            raise click.UsageError(f"costl {command} {option} is gone. {REMOVED[command, option]}")

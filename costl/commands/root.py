"""The command `costl`: the order of its commands, the sections of its help, and the exit codes for errors and signals."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from typing import Any

import click

from costl.commands.ask import demo, label, predict, report
from costl.commands.bench import bench
from costl.commands.cache import cache
from costl.commands.data import data
from costl.commands.early import refuse_removed_options
from costl.commands.evaluate import evaluate
from costl.commands.extract import extract
from costl.commands.jobs import prepare, quickstart, reproduce
from costl.commands.options import Group
from costl.commands.output import print_messages
from costl.commands.search import search
from costl.commands.study import study
from costl.commands.train import train
from costl.pipeline.errors import CostlError, next_step
from costl.training.launch import read_launch

INTERRUPTED = 130
# Imports make many objects and hardly any garbage. Python's 700 new objects between searches cost a fifth of their time.
GARBAGE_THRESHOLD = 100_000
DISTRIBUTED = ("train", "evaluate")  # the commands that may run under torchrun
SECTIONS = {
    "The three commands": (extract, train, evaluate),
    "Ask your videos": (search, predict, demo, label, report),
    "To begin": (quickstart, prepare, reproduce),
    "More commands": (data, cache, study, bench),
}


class Root(Group):
    """Prints an exception of a command as one message to standard error, and exits with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        if isinstance(sys.stdout, io.TextIOWrapper):  # a name of a file may have bytes that are not UTF-8
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except CostlError as error:
            if not error.reported:
                print_messages(f"Error: {error}")
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads the output
        except OSError as error:
            if error.errno is None:
                raise
            name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            print_messages(f"Error: {name}{os.strerror(error.errno)}. {next_step(error)}")
            ctx.exit(CostlError.exit_code)
        except click.ClickException as error:
            if read_launch().is_main:  # the other processes have the same arguments
                raise
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as stop:
            if read_launch().is_main:
                advice = str(stop) or "Finished work is saved. Run the same command again to continue."
                print_messages(f"Interrupted. {advice}")
            ctx.exit(INTERRUPTED)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that the arguments name. Raises UsageError with the whole name of a command in a group."""
        for name, group in self.commands.items():
            if args[0] not in self.commands and isinstance(group, click.Group) and args[0] in group.commands:
                raise click.UsageError(f"costl {args[0]}: no such command. Run costl {name} {args[0]}.")
        refuse_removed_options(args[0], args[1:])
        return super().resolve_command(ctx, args)

    def sections(self) -> dict[str, list[str]]:
        """The names of the commands under each heading of the help."""
        return {title: [str(command.name) for command in commands] for title, commands in SECTIONS.items()}


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "-V", "--version", package_name="costl", help="Print the version and exit.")
def main() -> None:
    """Find the moments of a video that a sentence describes, and score every two-second clip.

    \b
    Try all stages on a small sample world:
        costl quickstart
    Use your own videos, with train.jsonl, val.jsonl and test.jsonl in the same folder:
        costl extract --videos dir/
        costl train --cache feats.h5
        costl evaluate --split test
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    signal.signal(signal.SIGTERM, _interrupt)
    command = click.get_current_context().invoked_subcommand
    if read_launch().world_size > 1 and command not in DISTRIBUTED:
        raise click.UsageError(
            f"costl {command} runs in one process, and torchrun started {read_launch().world_size}. Run it without torchrun. "
            f"Only {' and '.join(DISTRIBUTED)} share their work between processes."
        )


for commands in SECTIONS.values():
    for command in commands:
        main.add_command(command)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

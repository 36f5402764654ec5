"""Prints the result of a command to standard output and its messages to standard error, and sets the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol, cast

import click


class Result(Protocol):
    """The return value of the function that a command calls. It may also have `messages()`, lines for standard error."""

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""

    def lines(self) -> Iterable[str]:
        """The text for standard output."""

    def data(self) -> Any:
        """The content for --json, as values that JSON can hold."""


class PaperResult(Result, Protocol):
    """A result that has a table for a paper."""

    def paper_table(self, style: str) -> list[str]:
        """The lines of the table, in Markdown ("md") or "latex"."""


def print_result(result: Result, *, as_json: bool = False, table: str | None = None) -> None:
    """Prints the result and its messages, and ends the command if the exit code is not 0.

    `table` is the style of a table for a paper, for a result that has one.
    """
    lines = cast(PaperResult, result).paper_table(table) if table else result.lines()
    for line in [json.dumps(result.data(), indent=2)] if as_json else lines:
        click.echo(line)
    finish_command(result)


def finish_command(result: Result) -> None:
    """Prints the messages of a result, and ends the command if the exit code is not 0."""
    messages = getattr(result, "messages", tuple)
    print_messages(*messages())
    if result.exit_code:
        raise SystemExit(result.exit_code)


def print_event(kind: str, **content: Any) -> None:
    """Prints an event as one line of JSON to standard output."""
    click.echo(json.dumps({"event": kind, **content}))


def print_messages(*messages: str) -> None:
    """Prints messages to standard error."""
    for message in messages:
        click.echo(message, err=True)

"""Prints the result of a command to standard output and its messages to standard error, and sets the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import click


class Result(Protocol):
    """The return value of the function that a command calls."""

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""

    def lines(self) -> Iterable[str]:
        """The text for standard output."""

    def data(self) -> Any:
        """The content for --json, as values that JSON can hold."""


@runtime_checkable
class HasMessages(Protocol):
    """A result with messages for the user."""

    def messages(self) -> Iterable[str]:
        """The text for standard error."""


@dataclass(frozen=True)
class Written:
    """A file or folder that a command wrote, and `notes` for the user."""

    path: Path
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The path."""
        return [str(self.path)]

    def data(self) -> dict[str, str]:
        """The path."""
        return {"path": str(self.path)}

    def messages(self) -> tuple[str, ...]:
        """The notes."""
        return self.notes


def print_result(result: Result, *, as_json: bool = False) -> None:
    """Prints the result and its messages, and ends the command if the exit code is not 0."""
    for line in [json.dumps(result.data(), indent=2)] if as_json else result.lines():
        click.echo(line)
    finish_command(result)


def finish_command(result: Result) -> None:
    """Prints the messages of a result, and ends the command if the exit code is not 0."""
    if isinstance(result, HasMessages):
        print_messages(*result.messages())
    if result.exit_code:
        raise SystemExit(result.exit_code)


def print_event(kind: str, **content: Any) -> None:
    """Prints an event as one line of JSON to standard output."""
    click.echo(json.dumps({"event": kind, **content}))


def print_messages(*messages: str) -> None:
    """Prints messages to standard error."""
    for message in messages:
        click.echo(message, err=True)

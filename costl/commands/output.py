"""What a command prints: a result to standard output, messages to standard error, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import click


class Result(Protocol):
    """What the call behind a command returns."""

    @property
    def exit_code(self) -> int:
        """What the command returns to the shell."""

    def lines(self) -> Iterable[str]:
        """The text for standard output."""

    def data(self) -> Any:
        """The same for --json, as values that JSON holds."""


@runtime_checkable
class HasMessages(Protocol):
    """A result with sentences for the person, which go to standard error."""

    def messages(self) -> Iterable[str]:
        """The sentences."""


@dataclass(frozen=True)
class Written:
    """A file or folder that a command wrote, and `notes` for the person."""

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


def show(result: Result, *, as_json: bool = False) -> None:
    """Prints the result and its messages, and ends the command where the exit code is not 0."""
    for line in [json.dumps(result.data(), indent=2)] if as_json else result.lines():
        click.echo(line)
    finish(result)


def finish(result: Result) -> None:
    """Prints the messages, and ends the command where the exit code is not 0."""
    if isinstance(result, HasMessages):
        say(*result.messages())
    if result.exit_code:
        raise SystemExit(result.exit_code)


def print_event(kind: str, **content: Any) -> None:
    """One line of JSON on standard output, for a command that reports while it runs."""
    click.echo(json.dumps({"event": kind, **content}))


def say(*messages: str) -> None:
    """Messages for the person, on standard error."""
    for message in messages:
        click.echo(message, err=True)

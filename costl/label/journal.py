"""The journal of a label file: every change since the file was written, each forced to the disk when it is appended.

    {"costl label journal": 1}
    {"qid": 7, "before": null, "after": {"qid": 7, "query": ...}}       a label is added, changed, or removed (after is null)

A line that a crash has cut off is the last one, and is ignored: its change was not reported as saved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.label.rows import Label, Qid, Row
from costl.pipeline.errors import CacheError, CostlError, UsageError, next_step
from costl.pipeline.formats.files import publish, sync
from costl.pipeline.formats.strict_json import read_json

_HEADER = {"costl label journal": 1}


@dataclass(frozen=True)
class Change:
    """A label before and after a change; None where it does not exist."""

    qid: Qid
    before: Row | None
    after: Row | None

    def to_row(self) -> dict[str, Any]:
        """The change as plain values."""
        return {"qid": self.qid, "before": self.before, "after": self.after}

    @classmethod
    def from_row(cls, row: Any) -> Change:
        """The change of `to_row`. Raises ValueError and UsageError for another value."""
        if not isinstance(row, dict) or row.keys() != {"qid", "before", "after"}:
            raise ValueError("not a change")
        for side in (row["before"], row["after"]):
            if side is not None and Label.from_row(side).qid != row["qid"]:
                raise ValueError("another label")
        return cls(row["qid"], row["before"], row["after"])


class Journal:
    """The file at `path`, which is made with the first change."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None
        self._bytes = 0
        self._is_torn = False

    def read(self) -> dict[Qid, Change]:
        """What has changed, by label: the label before the first change, and after the last one. Empty without a file.

        Raises CacheError for a file that is not a journal, or that is damaged before its last line.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CostlError(f"{self.path}: cannot be read ({error.strerror}). {next_step(error)}") from error
        entries = [_entry(line) for line in lines[:-1]]  # what follows the last line break is cut off
        while entries and entries[-1] is None:
            entries.pop()
        if None in entries:
            raise CacheError(f"{self.path}:{entries.index(None) + 1}: damaged, not a line of a label journal. Move it away.")
        if entries and entries[0] != _HEADER:
            raise CacheError(f"{self.path}: not a label journal of this version. Move it away.")
        changes: dict[Qid, Change] = {}
        for entry in entries[1:]:
            first = changes.get(entry.qid, entry)
            changes[entry.qid] = Change(entry.qid, first.before, entry.after)
        return changes

    def append(self, change: Change) -> None:
        """Appends a change, and returns when it is on the disk. Raises CostlError if the disk refuses; nothing is added."""
        try:
            if self._descriptor is None:
                self._open()
            self._append_line(change.to_row())
        except OSError as error:
            raise CostlError(f"{self.path}: cannot be written ({error.strerror}). {next_step(error)}") from error

    def replace(self, changes: Iterable[Change]) -> None:
        """Replaces all changes so far in one step. Raises CostlError when the disk refuses; they are unchanged then."""
        publish(self.path, b"".join(map(_line, [_HEADER, *(change.to_row() for change in changes)])))
        self.close()

    def remove(self) -> None:
        """Removes the file. Raises OSError when the disk refuses."""
        self.close()
        self.path.unlink(missing_ok=True)
        sync(self.path.parent)

    def close(self) -> None:
        """Closes the file, which stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._is_torn = False
        self._bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        if not self._bytes:
            self._append_line(_HEADER)
            sync(self.path.parent)

    def _append_line(self, entry: dict[str, Any]) -> None:
        """Writes a line and forces it to the disk. What an earlier failure has left of another line is cut off first."""
        assert self._descriptor is not None
        if self._is_torn:
            os.ftruncate(self._descriptor, self._bytes)
            os.lseek(self._descriptor, self._bytes, os.SEEK_SET)
        self._is_torn = True
        line = _line(entry)
        written = 0
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        os.fsync(self._descriptor)
        self._bytes += len(line)
        self._is_torn = False


def _line(entry: dict[str, Any]) -> bytes:
    return f"{json.dumps(entry)}\n".encode()


def _entry(line: bytes) -> Any:
    """The header or a Change; None for a line that is neither."""
    try:
        value = read_json(line.decode())
        return value if value == _HEADER else Change.from_row(value)
    except (ValueError, UsageError):
        return None

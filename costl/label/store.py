"""The labels of one file while a page is open: edits that state what they are based on, and other programs' changes.

    labels.jsonl            the file, which is written when the page is closed
    labels.jsonl.journal    what has changed since, on the disk before `edit` returns (see `journal`)
    .labels.jsonl-lock      locked while a page is open, so that a second process is refused

A killed process leaves its journal, and the next one begins by writing it into the file.
"""

from __future__ import annotations

import contextlib
import glob
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from costl.label.journal import Change, Journal
from costl.label.rows import Label, Labels, Qid, Row, free_qid, labels_text, parse_labels
from costl.pipeline.errors import CostlError, UsageError, next_step
from costl.pipeline.formats.files import locked, publish, refuse_folder
from costl.pipeline.formats.strict_json import read_text
from costl.pipeline.videos import FileStamp, file_stamp

_STILL_S = 1.0  # since the last change of a file that another program may still be writing


class Conflict(Exception):
    """An edit that is based on another version of a label; `current` is the label now, None if it is gone."""

    def __init__(self, current: Label | None):
        super().__init__("the label has changed meanwhile")
        self.current = current


@dataclass(frozen=True)
class Edit:
    """A label's new `row`, or None to remove it, based on its `version`, which is empty for a label that does not exist.

    `qid` is None for a new label, whose row has no qid yet.
    """

    qid: Qid | None
    version: str
    row: Row | None


@contextlib.contextmanager
def open_labels(path: Path) -> Iterator[LabelStore]:
    """The labels of the file at `path`, which need not exist. At the end of the block they are written to it.

    Raises UsageError for a file with bad rows, BusyError when another process has it open, CacheError for a damaged journal
    and CostlError when the disk refuses.
    """
    refuse_folder(path)
    message = f"{path}: another costl label has it open. Use its page, or end it first."
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(path.with_name(f".{path.name}-lock"), message))
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be written ({error.strerror}). {next_step(error)} --out names another file."
            ) from error
        for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of a killed process
            temporary.unlink(missing_ok=True)
        store = LabelStore(path)
        stack.callback(store.close)
        yield store


class LabelStore:
    """The labels of the file at `path`. Threads may share a store; only one process may have a file open.

    `problem`: why the file cannot be read any more, after another program has changed it; empty while it can. `notices`:
    sentences about what was changed by another program and here at the same time.
    """

    def __init__(self, path: Path):
        self.path = path
        self.problem = ""
        self.notices: list[str] = []
        self._journal = Journal(path.with_name(f"{path.name}.journal"))
        self._lock = threading.RLock()
        self._changes: dict[Qid, Change] = {}  # since the file was read
        self._removed: Labels = {}
        self._log: list[str] = []  # the video of each change that another window may not know of, in order
        try:
            self._labels, self._stamp = self._read_file()
        except UsageError as error:
            if not self._journal.path.exists():
                raise
            more = f"More labels are in {self._journal.path}: they are added when this file is correct."
            raise UsageError(f"{error}\n{more}") from error
        self._seen_stamp, self._seen_at_s = self._stamp, time.monotonic()
        self._changes = self._journal.read()
        self._merge(self._labels)
        self._write()

    @property
    def count(self) -> int:
        """How often labels have changed since the store was opened."""
        return len(self._log)

    def labels(self) -> list[Label]:
        """Every label, in the order of the file, new ones last."""
        with self._lock:
            return list(self._labels.values())

    def latest(self, qid: Qid | None) -> Label | None:
        """A label as it is, or as it was when it was removed here."""
        with self._lock:
            return None if qid is None else self._labels.get(qid) or self._removed.get(qid)

    def text(self) -> str:
        """All labels as JSONL."""
        return labels_text(self.labels())

    def changed_since(self, count: int) -> set[str]:
        """The videos whose labels have changed since `count` was what it was then."""
        with self._lock:
            return set(self._log[count:])

    def edit(self, edit: Edit) -> Label | None:
        """Makes an edit, and returns the label once it is on the disk; None if it was removed.

        An edit that has been made already changes nothing. Raises Conflict for one that is based on another version,
        UsageError for a row that is not possible, CostlError when the disk refuses.
        """
        with self._lock:
            qid = edit.qid if edit.qid is not None else self._qid_for(edit.row)
            current = self._labels.get(qid)
            row = None if edit.row is None else {"qid": qid, **edit.row}
            if row == (current and current.row):
                return current
            if edit.version != (current.version if current else "") or (edit.qid is None and current):
                raise Conflict(current)
            after = None if row is None else Label.from_row(row)
            self._journal.append(Change(qid, _row(self._labels, qid), row))
            self._apply(qid, after)
            return after

    def look_again(self, *, at_once: bool = False) -> None:
        """Merges the file, if another program has changed it, with the changes made here; it is not written.

        A file is read when it has not changed for a second, or `at_once`. One that is gone is ignored. A bad row becomes the
        `problem`.
        """
        with self._lock:
            stamp = file_stamp(self.path)
            if stamp != self._seen_stamp:
                self._seen_stamp, self._seen_at_s = stamp, time.monotonic()
            is_still = at_once or time.monotonic() - self._seen_at_s >= _STILL_S
            if not stamp or stamp == self._stamp or not is_still:
                return
            try:
                theirs, self._stamp = self._read_file()
            except UsageError as error:
                self.problem, self._stamp = str(error), stamp
            else:
                self.problem = ""
                self._merge(theirs)

    def close(self) -> None:
        """Writes the file, if anything has changed, and removes the journal.

        Raises UsageError for a file that another program has damaged; the journal stays then.
        """
        with self._lock:
            self.look_again(at_once=True)
            self._journal.close()
            if self.problem and self._changes:
                raise UsageError(
                    f"{self.problem}\nYour labels are in {self._journal.path}. Correct the file and start costl label again."
                )
            self._write()

    def _read_file(self) -> tuple[Labels, FileStamp]:
        stamp = file_stamp(self.path)
        return (parse_labels(read_text(self.path), str(self.path)) if stamp else {}), stamp

    def _qid_for(self, row: Row | None) -> Qid:
        """The id of a new label: that of a label with the same sentence and video, or a new number."""
        if row is None:
            raise UsageError("nothing to remove.")
        for label in self._labels.values():
            if (label.row["query"], label.row["vid"]) == (row["query"], row["vid"]):
                return label.qid
        return free_qid([*self._labels, *self._changes])

    def _apply(self, qid: Qid, after: Label | None) -> None:
        before = self._labels.get(qid)
        first = self._changes[qid].before if qid in self._changes else _row(self._labels, qid)
        self._changes[qid] = Change(qid, first, after.row if after else None)
        if after is None:
            self._removed[qid] = self._labels.pop(qid)
        else:
            self._labels[qid] = after
        self._log += {label.video for label in (before, after) if label}

    def _merge(self, theirs: Labels) -> None:
        """The labels of the file, changed by other programs, with the changes made here."""
        merged, notices = merge(theirs, self._changes)
        self.notices += notices
        videos = {label.video for label in (*self._labels.values(), *merged.values())}
        self._labels = merged
        self._log += videos
        qids = [qid for qid in (*merged, *theirs) if _row(merged, qid) != _row(theirs, qid)]
        self._changes = {qid: Change(qid, _row(theirs, qid), _row(merged, qid)) for qid in qids}
        if self._changes:
            self._journal.replace(self._changes.values())

    def _write(self) -> None:
        """Publishes the labels, then removes the journal: a crash in between leaves changes that are made already."""
        if self._changes:
            publish(self.path, self.text().encode())
            self._changes = {}
            self._stamp = file_stamp(self.path)
        try:
            if self._journal.path.exists():
                self._journal.remove()
        except OSError as error:
            raise CostlError(f"{self._journal.path}: cannot be removed ({error.strerror}). {next_step(error)}") from error


def merge(theirs: Labels, changes: Mapping[Qid, Change]) -> tuple[Labels, list[str]]:
    """The labels of a file with the changes made since another state of it, and a sentence about each conflict.

    Where both have changed a label in different ways, both versions stay, and that of the changes gets a new qid. A label
    that one has changed and the other one removed stays.
    """
    merged = dict(theirs)
    notices = []
    for qid, change in changes.items():
        row = _row(theirs, qid)
        if change.after == change.before:
            continue
        if change.after is None:
            if row in (change.before, None):
                merged.pop(qid, None)
            else:
                notices.append(f"Label {qid} was removed here and changed in the file: it stays, as the file has it.")
        elif row in (change.before, change.after):
            merged[qid] = Label(qid, change.after)
        elif row is None:
            merged[qid] = Label(qid, change.after)
            notices.append(f"Label {qid} was changed here and removed from the file: it stays.")
        else:
            new = free_qid([*merged, *changes])
            merged[new] = Label(new, {**change.after, "qid": new})
            notices.append(f"Label {qid} was changed here and in the file: both versions stay, that of this page as {new}.")
    return merged, notices


def _row(labels: Labels, qid: Qid) -> Row | None:
    return labels[qid].row if qid in labels else None

"""What a crash would leave behind: the states that a folder goes through while something is written into it.

Before every call of the system by which files come to be (opening, writing, cutting, forcing to the disk, renaming,
removing) the folder is looked at, whoever makes the call. Of each look three states are made:

    killed   the process is gone: all that it had handed to the system is there
    torn     the power is gone: every name is there, but of a file that was not forced to the disk only the first half
    lost     the power is gone: a name is there only if its folder was forced to the disk since, with the content that was

A reader that finds any of them must find everything that was reported as finished.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

CALLS = frozenset({"open", "write", "writelines", "flush", "truncate", "ftruncate", "pwrite", "fsync"})
CALLS |= {"replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir"}
SYSTEM = ("posix", "nt", "_io")
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class State:
    """A folder as a crash would leave it: `files` by their path in it, what had been reported by then, and why."""

    files: Files
    said: tuple[str, ...]
    how: str
    before: str

    def named(self) -> Files:
        """Without what is half-written and is called so."""
        return {name: content for name, content in self.files.items() if "/." not in f"/{name}"}

    def write(self, folder: Path) -> Path:
        """Makes the folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass
class _Disk:
    """What has been forced to the disk: contents by file, and by folder the names in it; and where folders are, which
    count as there from the first look on, under the name they had then until the folder around them is forced."""

    content: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    places: dict[int, tuple[int, str]] = field(default_factory=dict)

    def place(self, folder: int) -> str:
        """The path of a folder, with a slash at its end; nothing for the one that is recorded."""
        if folder not in self.places:
            return ""
        above, name = self.places[folder]
        return f"{self.place(above)}{name}/"


class Recording:
    """Looks at `folder` while it is entered, in every thread that begins meanwhile, too. Forcing to the disk only counts.

    `boundaries` is how many calls there were, `states` what crashes would leave, each once.
    """

    def __init__(self, folder: Path):
        self.boundaries = 0
        self.states: list[State] = []
        self._folder, self._said, self._known = folder, [], set()  # type: ignore[var-annotated]
        self._disk, self._seen = _Disk(), {}  # type: ignore[var-annotated]
        self._files: dict[int, int] = {}
        self._contents: dict[bytes, bytes] = {}
        self._next = 0
        self._lock = threading.RLock()

    def say(self, what: str) -> None:
        """Something has been reported as finished."""
        self._said.append(what)

    def __enter__(self) -> Recording:
        for path, (number, content) in self._tree():  # what lies there is on the disk
            self._disk.content[number] = content
            self._disk.names.setdefault((self._folder / path).parent.stat().st_ino, {})[Path(path).name] = number
        self._look("the beginning")
        self._fsync, os.fsync = os.fsync, self._force
        self._former = sys.getprofile(), threading.getprofile()
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._former[0])
        threading.setprofile(self._former[1])
        os.fsync = self._fsync
        self._look("the end")

    def _profile(self, frame: Any, event: str, call: Any) -> None:
        if event == "c_call" and call.__name__ in CALLS:
            owner = getattr(call, "__self__", None)
            file = isinstance(owner, io.IOBase) and not isinstance(owner, io.BytesIO | io.StringIO)
            if file or (isinstance(owner, ModuleType) and owner.__name__ in SYSTEM):
                self._look(call.__name__)

    def _force(self, descriptor: int) -> None:
        sys.setprofile(None)  # not to look at ourselves looking
        try:
            self._count_as_forced(descriptor)
        finally:
            sys.setprofile(self._profile)

    def _count_as_forced(self, descriptor: int) -> None:
        with self._lock:
            tree, about = self._look("fsync"), os.fstat(descriptor)
            number = self._files.get(about.st_ino)
            if stat.S_ISDIR(about.st_mode):
                inside = {path: file for path, (file, _) in tree.items() if self._folder_of(path) == about.st_ino}
                self._disk.names[about.st_ino] = {Path(path).name: file for path, file in inside.items()}
                self._disk.places |= {f: place for f, place in self._folders().items() if place[0] == about.st_ino}
            elif number is not None:
                self._disk.content[number] = self._seen[number]

    def _look(self, before: str) -> dict[str, tuple[int, bytes]]:
        with self._lock:
            self.boundaries += 1
            tree = dict(self._tree())
            self._seen |= dict(tree.values())
            self._add("killed", {path: content for path, (_, content) in tree.items()}, before)
            self._add("torn", {path: self._kept(number) for path, (number, _) in tree.items()}, before)
            self._disk.places = self._folders() | self._disk.places
            lost = {self._disk.place(f) + name: n for f, names in self._disk.names.items() for name, n in names.items()}
            self._add("lost", {path: self._kept(number) for path, number in lost.items()}, before)
            return tree

    def _folders(self) -> dict[int, tuple[int, str]]:
        """Every folder inside: the one around it, and its name."""
        found = [path for path in self._folder.rglob("*") if path.is_dir()]
        return {path.stat().st_ino: (path.parent.stat().st_ino, path.name) for path in found}

    def _folder_of(self, path: str) -> int:
        return (self._folder / path).parent.stat().st_ino

    def _tree(self) -> Iterator[tuple[str, tuple[int, bytes]]]:
        """(path, (which file it is, its content)); a number that the system gives out again is another file."""
        now: dict[int, int] = {}
        for path in sorted(self._folder.rglob("*")):
            try:
                about, content = path.stat(), path.read_bytes()
            except OSError:  # a folder; or it has just gone
                continue
            content = self._contents.setdefault(content, content)  # kept once, however often it is seen
            if about.st_ino not in now:
                now[about.st_ino] = self._files.get(about.st_ino, self._next)
                self._next = max(self._next, now[about.st_ino] + 1)
                if about.st_ino not in self._files and about.st_nlink > 1:  # a further name of what was on the disk
                    self._disk.content[now[about.st_ino]] = content
            yield str(path.relative_to(self._folder)), (now[about.st_ino], content)
        self._files = now

    def _kept(self, number: int) -> bytes:
        seen = self._seen[number]
        return self._disk.content.get(number, seen[: len(seen) // 2])

    def _add(self, how: str, files: dict[str, bytes], before: str) -> None:
        key = (*self._said, *sorted((name, hash(content)) for name, content in files.items()))
        if key not in self._known:
            self._known.add(key)
            self.states.append(State(files, tuple(self._said), how, before))


def without_repeats(states: list[State]) -> list[State]:
    """One state for each way in which the files that have their names, and what was reported, differ."""
    found: dict[Any, State] = {}
    for state in states:
        found.setdefault((state.said, tuple(sorted((n, hash(c)) for n, c in state.named().items()))), state)
    return list(found.values())

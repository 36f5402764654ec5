"""Records the states that a crash could leave in a folder while something is written into it.

The folder is read before every system call that changes files (open, write, truncate, fsync, rename, remove), in any
thread. Each reading gives three states:

    killed   the process is gone: everything that it had passed to the system is there
    torn     the power is gone: every name is there, but a file without fsync has only the first half of its content
    lost     the power is gone: a name is there only if its folder had an fsync since, with the content of its own fsync

In each of them a reader must find everything that was reported as finished.
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
    """A folder as a crash would leave it: its files, what was reported before, the kind of crash, and the next call."""

    files: Files
    reported: tuple[str, ...]
    crash: str
    next_call: str

    def published(self) -> Files:
        """The files without temporary ones, whose names start with a dot."""
        return {name: content for name, content in self.files.items() if "/." not in f"/{name}"}

    def write(self, folder: Path) -> Path:
        """Writes the files into `folder`; -> `folder`."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass
class _Disk:
    """What has reached the disk: the content of each file, the names in each folder, the (parent, name) of each folder.

    A folder counts as on the disk as soon as it was seen, under its first name until its parent has an fsync.
    """

    content: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    parents: dict[int, tuple[int, str]] = field(default_factory=dict)

    def path(self, folder: int) -> str:
        """The path of a folder with a slash at its end; an empty string for the recorded folder."""
        if folder not in self.parents:
            return ""
        parent, name = self.parents[folder]
        return f"{self.path(parent)}{name}/"


class Recording:
    """A context in which `folder` is read before each call, also in new threads. Calls of fsync are only recorded.

    `calls` is the number of calls, `states` the different states that crashes would leave.
    """

    def __init__(self, folder: Path):
        self.calls = 0
        self.states: list[State] = []
        self.reported: list[str] = []
        self._folder = folder
        self._disk = _Disk()
        self._latest: dict[int, bytes] = {}  # the last content of each file, by its number
        self._numbers: dict[int, int] = {}  # the number of each file, by its inode
        self._next_number = 0
        self._contents: dict[bytes, bytes] = {}
        self._known_states: set[tuple] = set()
        self._lock = threading.RLock()

    def report(self, name: str) -> None:
        """Records that `name` has been reported as finished."""
        self.reported.append(name)

    def __enter__(self) -> Recording:
        for path, (number, content) in self._tree():  # files from before are on the disk
            self._disk.content[number] = content
            self._disk.names.setdefault((self._folder / path).parent.stat().st_ino, {})[Path(path).name] = number
        self._read("the beginning")
        self._fsync = os.fsync
        os.fsync = self._record_fsync
        self._former_profiles = (sys.getprofile(), threading.getprofile())
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._former_profiles[0])
        threading.setprofile(self._former_profiles[1])
        os.fsync = self._fsync
        self._read("the end")

    def _profile(self, frame: Any, event: str, call: Any) -> None:
        if event == "c_call" and call.__name__ in CALLS:
            owner = getattr(call, "__self__", None)
            is_file = isinstance(owner, io.IOBase) and not isinstance(owner, io.BytesIO | io.StringIO)
            if is_file or (isinstance(owner, ModuleType) and owner.__name__ in SYSTEM):
                self._read(call.__name__)

    def _record_fsync(self, descriptor: int) -> None:
        sys.setprofile(None)  # the calls of the recording itself do not count
        try:
            self._store_on_disk(descriptor)
        finally:
            sys.setprofile(self._profile)

    def _store_on_disk(self, descriptor: int) -> None:
        with self._lock:
            tree = self._read("fsync")
            status = os.fstat(descriptor)
            inode = status.st_ino
            if stat.S_ISDIR(status.st_mode):
                inside = {path: number for path, (number, _) in tree.items() if self._folder_of(path) == inode}
                self._disk.names[inode] = {Path(path).name: number for path, number in inside.items()}
                self._disk.parents |= {f: parent for f, parent in self._folders().items() if parent[0] == inode}
            elif inode in self._numbers:
                number = self._numbers[inode]
                self._disk.content[number] = self._latest[number]

    def _read(self, next_call: str) -> dict[str, tuple[int, bytes]]:
        with self._lock:
            self.calls += 1
            tree = dict(self._tree())
            self._latest |= dict(tree.values())
            self._add("killed", {path: content for path, (_, content) in tree.items()}, next_call)
            self._add("torn", {path: self._surviving(number) for path, (number, _) in tree.items()}, next_call)
            self._disk.parents = self._folders() | self._disk.parents
            on_disk = {
                self._disk.path(folder) + name: number
                for folder, names in self._disk.names.items()
                for name, number in names.items()
            }
            self._add("lost", {path: self._surviving(number) for path, number in on_disk.items()}, next_call)
            return tree

    def _folders(self) -> dict[int, tuple[int, str]]:
        """The parent and the name of every folder inside."""
        folders = [path for path in self._folder.rglob("*") if path.is_dir()]
        return {path.stat().st_ino: (path.parent.stat().st_ino, path.name) for path in folders}

    def _folder_of(self, path: str) -> int:
        return (self._folder / path).parent.stat().st_ino

    def _tree(self) -> Iterator[tuple[str, tuple[int, bytes]]]:
        """(path, (number of the file, content)). A reused inode is another file and gets a new number."""
        numbers: dict[int, int] = {}
        for path in sorted(self._folder.rglob("*")):
            try:
                status = path.stat()
                content = path.read_bytes()
            except OSError:  # a folder, or a file that was just removed
                continue
            content = self._contents.setdefault(content, content)  # equal contents share one object
            inode = status.st_ino
            if inode not in numbers:
                numbers[inode] = self._numbers.get(inode, self._next_number)
                self._next_number = max(self._next_number, numbers[inode] + 1)
                if inode not in self._numbers and status.st_nlink > 1:  # another name of a file that is on the disk
                    self._disk.content[numbers[inode]] = content
            yield str(path.relative_to(self._folder)), (numbers[inode], content)
        self._numbers = numbers

    def _surviving(self, number: int) -> bytes:
        """The content after a loss of power: that of the last fsync, or the first half of a file without one."""
        latest = self._latest[number]
        return self._disk.content.get(number, latest[: len(latest) // 2])

    def _add(self, crash: str, files: dict[str, bytes], next_call: str) -> None:
        key = (*self.reported, *sorted((name, hash(content)) for name, content in files.items()))
        if key not in self._known_states:
            self._known_states.add(key)
            self.states.append(State(files, tuple(self.reported), crash, next_call))


def without_repeats(states: list[State]) -> list[State]:
    """The first of all states with the same published files and the same reports."""
    first: dict[Any, State] = {}
    for state in states:
        files = sorted((name, hash(content)) for name, content in state.published().items())
        first.setdefault((state.reported, tuple(files)), state)
    return list(first.values())

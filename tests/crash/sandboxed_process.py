"""Runs commands on hostile files in one process and records what they open, start and write, and their memory.

python sandboxed_process.py MARKER < plan.json

The plan is a list of [name, folder, commands as typed]. Prints one line of JSON for each command.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from costl.commands import main

SPARE_BYTES = 2 << 30  # address space that the commands may take in addition to that of the imports
_IN_OPEN, _IN_ACCESS = 0x20, 0x01  # flags of inotify
_FILE_EVENTS = ("open", "os.listdir", "os.scandir")
_PROCESS_EVENTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


class Watch:
    """Records Python's audit events, and through inotify whether the marker file was opened, even by a C library."""

    def __init__(self, marker: str):
        self._libc = ctypes.CDLL(None)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._descriptor, marker.encode(), _IN_OPEN | _IN_ACCESS) > 0
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self._record)

    def take(self) -> list[str]:
        """The events since the last call."""
        events, self.events = self.events, []
        try:
            os.read(self._descriptor, 1 << 16)
            events.append("the marker file")
        except BlockingIOError:
            pass
        return events

    def _record(self, event: str, arguments: tuple) -> None:
        if self.on and event in _FILE_EVENTS and isinstance(arguments[0], str | bytes):
            self.events.append(os.path.realpath(os.fsdecode(arguments[0])))
        elif self.on and event in _PROCESS_EVENTS:
            self.events.append(f"{event} {arguments[:1]!r}"[:200])


def run_plan(marker: str) -> None:
    import_all()
    watch = Watch(marker)
    limit_memory()
    for name, folder, commands in json.load(sys.stdin):
        os.chdir(folder)
        for command in commands:
            print(json.dumps({"name": name} | run(command, folder, watch)), flush=True)


def import_all() -> None:
    """Imports what the commands import when they begin, so that none of it counts for the first of them."""
    for name in ("experiments.ablate", "ask.asker", "experiments.probe", "report.build", "ask.export_model"):
        importlib.import_module(f"costl.{name}")
    for name in ("add_queries", "published.import_features", "cache.merge"):
        importlib.import_module(f"costl.pipeline.{name}")


def limit_memory() -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, hard_limit))


def run(command: str, folder: str, watch: Watch) -> dict[str, object]:
    """Runs one command in `folder`; -> the fields of `CommandResult` in test_hostile_files.py but `name`."""
    before = dict(file_stamps(folder))
    size_kb = reset_peak()
    watch.on = True
    result = CliRunner().invoke(main, command.split())
    watch.on = False
    allowed = (*own_folders(), os.path.realpath(folder))
    raised = result.exception is not None and not isinstance(result.exception, SystemExit)
    return {
        "command": command,
        "exit_code": result.exit_code,
        "stdout": result.stdout[-2000:],
        "stderr": result.stderr[-4000:],
        "stderr_length": len(result.stderr),
        "exception": repr(result.exception)[:300] if raised else "",
        "forbidden": [event for event in watch.take() if not event.startswith(allowed)],
        "written": sorted(path for path, stamp in file_stamps(folder) if before.get(path) != stamp),
        "grown_mb": (peak_kb() - size_kb) / 1e3,
    }


def own_folders() -> tuple[str, ...]:
    """What any command may open: Python, this project and the system."""
    folders = (sys.prefix, sys.base_prefix, Path(__file__).parents[2], "/proc", "/sys", "/dev", "/usr")
    return tuple(map(os.path.realpath, folders))


def file_stamps(folder: str) -> Iterator[tuple[str, tuple]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            yield os.path.relpath(path, folder), (status.st_ino, status.st_size, status.st_mtime_ns)


def reset_peak() -> int:
    """Resets the peak of resident memory; -> the resident memory now, kB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kb()


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_plan(sys.argv[1])

"""Commands over hostile files in one process that is watched: what it opens, starts, writes, and how much memory it takes.

python sandboxed_process.py CANARY < plan.json: a list of [name, home, commands as typed]; prints one JSON line a command.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

SPARE_BYTES = 2 << 30  # of address space beyond what is taken when the first command begins
_OPENED, _READ = 0x20, 0x01  # inotify's IN_OPEN and IN_ACCESS
_TOUCHING = ("open", "os.listdir", "os.scandir")
_RUNNING = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)


class Watch:
    """Every event of Python's own since the last `take`, and by the kernel's word whether a file was opened."""

    def __init__(self, canary: str):
        self._libc = ctypes.CDLL(None)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._descriptor, canary.encode(), _OPENED | _READ) > 0
        self.on = False
        self.events: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.on and event in _TOUCHING and isinstance(arguments[0], str | bytes):
            self.events.append(os.path.realpath(os.fsdecode(arguments[0])))
        elif self.on and event in _RUNNING:
            self.events.append(f"{event} {arguments[:1]!r}"[:200])

    def take(self) -> list[str]:
        found, self.events = self.events, []
        try:
            os.read(self._descriptor, 1 << 16)
            found.append("the canary")
        except BlockingIOError:
            pass
        return found


def main(canary: str) -> None:
    from click.testing import CliRunner

    from costl.commands import main

    places = (sys.prefix, sys.base_prefix, Path(__file__).parents[2], "/proc", "/sys", "/dev", "/usr")
    own = tuple(map(os.path.realpath, places))
    import_all()
    watch = Watch(canary)
    taken = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, taken[1]))
    for name, home, commands in json.load(sys.stdin):
        os.chdir(home)
        for command in commands:
            before, peak = dict(files(home)), reset_peak()
            watch.on = True
            done = CliRunner().invoke(main, command.split())
            watch.on = False
            inside = (*own, os.path.realpath(home))
            left = done.exception is not None and not isinstance(done.exception, SystemExit)
            told = {
                "name": name,
                "command": command,
                "code": done.exit_code,
                "out": done.stdout[-2000:],
                "said": done.stderr[-4000:],
                "length": len(done.stderr),
                "raised": repr(done.exception)[:300] if left else "",
                "strange": [event for event in watch.take() if not event.startswith(inside)],
                "written": sorted(path for path, stamp in files(home) if before.get(path) != stamp),
                "grown_mb": (peak_kb() - peak) / 1e3,
            }
            print(json.dumps(told), flush=True)


def import_all() -> None:
    """What commands import when they begin, so that none of it counts for the first of them."""
    for name in ("experiments.ablate", "ask.asker", "experiments.probe", "report.build", "ask.export"):
        importlib.import_module(f"costl.{name}")
    for name in ("add_queries", "published.import_features", "cache.merge"):
        importlib.import_module(f"costl.pipeline.{name}")


def files(home: str) -> Iterator[tuple[str, tuple]]:
    for folder, _, names in os.walk(home):
        for name in names:
            about = os.lstat(os.path.join(folder, name))
            yield os.path.relpath(os.path.join(folder, name), home), (about.st_ino, about.st_size, about.st_mtime_ns)


def reset_peak() -> int:
    """Forgets the largest size that this process ever had; -> kB now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kb()


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main(sys.argv[1])

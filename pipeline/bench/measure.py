"""Measures a piece of work: wall-clock seconds, CPU seconds including child processes, and peak memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from costl.pipeline.errors import CostlError

T = TypeVar("T")
_PROC = Path("/proc")
_POLL_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and CPU seconds of this process and of the child processes it has waited for."""

    wall_s: float
    cpu_s: float

    def scaled(self, factor: float) -> Cost:
        """The cost of `factor` times as much of the same work."""
        return Cost(self.wall_s * factor, self.cpu_s * factor)


def cost_of(work: Callable[[], T]) -> tuple[T, Cost]:
    """Returns the result of `work` and its cost. `work` must end every process and thread that it starts."""
    cpu_s = _cpu_s()
    started = time.perf_counter()
    result = work()
    return result, Cost(time.perf_counter() - started, _cpu_s() - cpu_s)


def best(costs: Iterable[Cost]) -> Cost:
    """The least wall time and the least CPU time: other work on the machine only ever adds to them."""
    costs = list(costs)
    return Cost(min(cost.wall_s for cost in costs), min(cost.cpu_s for cost in costs))


def can_measure_memory() -> bool:
    """Whether this system reports the peak memory of other processes (Linux does)."""
    return (_PROC / "self" / "status").exists()


def peak_memory(command: Sequence[str], *, cwd: Path | None = None) -> float:
    """Runs `command`; returns the sum of the peak resident memory of its processes and all their descendants, in bytes.

    Shared memory counts in every process that touches it. Raises CostlError if the command fails.
    """
    peaks: dict[int, float] = {}
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for pid in _with_descendants(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), _peak_rss(pid))
            time.sleep(_POLL_INTERVAL_S)
        errors = process.stderr.read().strip() if process.stderr else ""
    if process.returncode:
        last = errors.splitlines()[-1] if errors else "no error output"
        raise CostlError(f"The memory measurement failed (exit code {process.returncode}): {last}")
    return sum(peaks.values())


def _cpu_s() -> float:
    try:
        import resource
    except ImportError:  # Windows does not count children
        return time.process_time()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _with_descendants(pid: int) -> set[int]:
    """`pid` and all its descendants."""
    parents = {int(folder.name): _parent(folder) for folder in _PROC.iterdir() if folder.name.isdecimal()}
    family = {pid}
    children = {pid}
    while children:
        children = {child for child, parent in parents.items() if parent in family} - family
        family |= children
    return family


def _parent(process_folder: Path) -> int:
    try:
        # The name, in brackets, may contain anything. State and parent follow it.
        return int((process_folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # the process has just ended
        return -1


def _peak_rss(pid: int) -> float:
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0.0)

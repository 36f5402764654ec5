"""What a piece of work costs: seconds on the clock, CPU seconds with those of its processes, and peak memory."""

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
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and CPU seconds of this process and of the processes it started and has waited for."""

    wall_s: float
    cpu_s: float

    def times(self, factor: float) -> Cost:
        """The cost of `factor` times as much of the same work."""
        return Cost(self.wall_s * factor, self.cpu_s * factor)


def cost_of(work: Callable[[], T]) -> tuple[T, Cost]:
    """What `work` returns, and what it took. It must have ended every process and thread that it started."""
    cpu_s, started = _cpu_s(), time.perf_counter()
    result = work()
    return result, Cost(time.perf_counter() - started, _cpu_s() - cpu_s)


def best(costs: Iterable[Cost]) -> Cost:
    """The least of each: what else the machine does only ever adds."""
    wall_s, cpu_s = zip(*((cost.wall_s, cost.cpu_s) for cost in costs), strict=True)
    return Cost(min(wall_s), min(cpu_s))


def can_see_memory() -> bool:
    """Whether this system tells the peak memory of other processes (Linux does)."""
    return (_PROC / "self" / "status").exists()


def peak_memory(command: Sequence[str], *, cwd: Path | None = None) -> float:
    """Bytes: the peak resident memory of each process of `command`, its children's children included, added up.

    Shared memory counts in every process that touches it. Raises CostlError when the command fails.
    """
    peaks: dict[int, float] = {}
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for pid in _family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), _high_water(pid))
            time.sleep(_LOOK_EVERY_S)
        said = process.stderr.read().strip() if process.stderr else ""
    if process.returncode:
        last = said.splitlines()[-1] if said else "it said nothing"
        raise CostlError(f"The measurement of memory failed (exit code {process.returncode}): {last}")
    return sum(peaks.values())


def _cpu_s() -> float:
    try:
        import resource
    except ImportError:  # Windows counts no children
        return time.process_time()
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _family(pid: int) -> set[int]:
    """`pid` and all that descend from it."""
    parents = {int(place.name): _parent(place) for place in _PROC.iterdir() if place.name.isdecimal()}
    family, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return family


def _parent(place: Path) -> int:
    try:
        # The name, in brackets, may hold anything; behind it come the state and the parent.
        return int((place / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # it has just ended
        return -1


def _high_water(pid: int) -> float:
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0.0)

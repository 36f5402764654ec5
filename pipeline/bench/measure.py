"""Measures pieces of work: wall-clock seconds, CPU seconds including child processes, and peak memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from costl.pipeline.errors import CostlError
from costl.pipeline.processes import NewProcesses

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")
_PROC = Path("/proc")
_POLL_INTERVAL_S = 0.05
_WATCH_INTERVAL_S = 0.001


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and CPU seconds of this process and of the child processes it has waited for."""

    wall_s: float
    cpu_s: float


def cost_of(work: Callable[[], object]) -> Cost:
    """The cost of `work`, which must end every process and thread that it starts."""
    cpu_s = _cpu_s()
    started = time.perf_counter()
    work()
    return Cost(time.perf_counter() - started, _cpu_s() - cpu_s)


def measure(works: Mapping[K, Callable[[], object]], *, repeats: int) -> dict[K, Cost]:
    """The least wall time and the least CPU time of each piece of work in `repeats` rounds: other load only adds to them.

    Each round does all the work once, so that other load of the machine affects every piece of it.
    """
    rounds = [{name: cost_of(work) for name, work in works.items()} for _ in range(repeats)]
    return {
        name: Cost(min(costs[name].wall_s for costs in rounds), min(costs[name].cpu_s for costs in rounds))
        for name in works
    }


def in_new_process(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of `work`, a function of a module, in a new process, where nothing else has allocated memory.

    Raises CostlError if the process runs out of memory or is killed.
    """
    with ProcessPoolExecutor(1, mp_context=NewProcesses()) as pool:
        try:
            return pool.submit(work, *arguments, **options).result()
        except (MemoryError, RuntimeError) as error:  # of torch, and of a process that was killed
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CostlError(
                f"The measurement failed ({reason}). If memory was short, measure fewer --videos."
            ) from error


def can_measure_memory() -> bool:
    """Whether this system reports the peak memory of processes (Linux does)."""
    return (_PROC / "self" / "status").exists()


def can_drop_pages() -> bool:
    """Whether this system can drop files from its page cache (Linux can)."""
    return hasattr(os, "posix_fadvise")


def drop_pages(files: Iterable[Path]) -> None:
    """Lets the system drop `files` from its page cache. Pages that a process has mapped stay."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # only pages that are on disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def peak_rss(pid: int | None = None) -> float:
    """Peak resident memory in bytes of a process, by default of this one; 0 if the process has ended."""
    try:
        lines = (_PROC / str(pid or os.getpid()) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def peak_anonymous_bytes(work: Callable[[], object]) -> float:
    """The most resident memory without mapped files that this process has while `work` runs and its result exists, in bytes."""
    most = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(_WATCH_INTERVAL_S):
            most = max(most, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _result = work()  # exists until the memory is read
        return max(most, _anonymous_bytes())
    finally:
        ended.set()
        watcher.join()


def peak_memory(command: Sequence[str], *, cwd: Path | None = None) -> float:
    """Runs `command`; returns the sum of the peak resident memory of its processes and all their descendants, in bytes.

    Shared memory counts in every process that touches it. Raises CostlError if the command fails.
    """
    peaks: dict[int, float] = {}
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for pid in _with_descendants(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), peak_rss(pid))
            time.sleep(_POLL_INTERVAL_S)
        errors = process.stderr.read().strip() if process.stderr else ""
    if process.returncode:
        last = errors.splitlines()[-1] if errors else "no error output"
        raise CostlError(f"The memory measurement failed (exit code {process.returncode}): {last}")
    return sum(peaks.values())


def _anonymous_bytes() -> float:
    lines = (_PROC / "self" / "status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _cpu_s() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


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
    except OSError:  # the process has just ended
        return -1

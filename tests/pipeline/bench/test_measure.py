"""Measured CPU seconds and peak memory of this process and of child processes that use a known amount."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.bench.measure import (
    can_measure_memory,
    cost_of,
    in_new_process,
    measure,
    peak_anonymous_bytes,
    peak_memory,
    peak_rss,
)
from costl.pipeline.errors import CostlError

BURNED_S = 0.4
# Uses this many CPU seconds, whatever other load there is, and prints how many it has used by its own clock.
BURN = f"import time\nwhile time.process_time() < {BURNED_S}: sum(range(1000))\nprint(time.process_time())"
linux = pytest.mark.skipif(not can_measure_memory(), reason="this system does not report the memory of other processes")


def read_map_and_fill(path: Path) -> np.ndarray:
    """Reads a mapped file, then returns 40 MB of memory."""
    mapped = np.memmap(path, np.uint8, "r")
    return np.full(40_000_000, int(mapped.sum()) % 2, np.uint8)


def growth_of(path: Path) -> float:
    before = peak_anonymous_bytes(lambda: None)
    return peak_anonymous_bytes(lambda: read_map_and_fill(path)) - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_result_counts_as_memory_and_a_mapped_file_does_not(tmp_path):
    np.zeros(100_000_000, np.uint8).tofile(tmp_path / "mapped")
    assert 40e6 * 0.9 < in_new_process(growth_of, tmp_path / "mapped") < 70e6


def burn(seconds: float) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        sum(range(1000))


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count children")
def test_cpu_seconds_of_a_child_are_counted():
    burned: list[float] = []
    cost = cost_of(lambda: burned.append(float(run(BURN))))
    # Starting and waiting for a process takes some time too. The time of children has a resolution of 10 ms.
    assert burned[0] >= BURNED_S and burned[0] - 0.02 <= cost.cpu_s < burned[0] + 0.3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count children")
def test_cpu_seconds_of_a_child_that_is_killed_are_counted():
    burned: list[float] = []

    def work() -> None:
        wait = "\nimport sys; sys.stdout.flush(); time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", BURN + wait], stdout=subprocess.PIPE, text=True) as process:
            burned.append(float(process.stdout.readline()))
            process.kill()

    cost = cost_of(work)
    assert burned[0] - 0.02 <= cost.cpu_s < burned[0] + 0.3


def test_sleeping_takes_no_cpu_time_and_computing_does():
    waited = cost_of(lambda: time.sleep(0.3))
    burned = cost_of(lambda: burn(0.3))
    assert waited.wall_s >= 0.3 and waited.cpu_s < 0.1
    assert burned.wall_s >= 0.29 and 0.3 <= burned.cpu_s < 0.4


def test_the_least_cost_of_all_rounds_counts():
    seconds = iter([0.2, 0.1, 0.05, 0.1])
    order: list[str] = []

    def work(name: str) -> None:
        order.append(name)
        time.sleep(next(seconds))

    costs = measure({"a": lambda: work("a"), "b": lambda: work("b")}, repeats=2)
    assert order == ["a", "b", "a", "b"]
    assert 0.05 <= costs["a"].wall_s < 0.09 and 0.1 <= costs["b"].wall_s < 0.19


def test_a_new_process_returns_the_result_and_its_death_is_an_error():
    assert in_new_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(CostlError, match="If memory was short, measure fewer --videos"):
        in_new_process(os.abort)


@linux
def test_the_peak_of_a_new_process_is_not_that_of_this_one():
    values = np.ones(20_000_000)
    assert in_new_process(peak_rss) < peak_rss() and values.all()
    assert peak_rss(2**22) == 0.0  # no such process


@linux
def test_peak_memory_includes_children_and_memory_freed_since():
    megabytes = 150
    hold = f"import numpy, time; a = numpy.ones({megabytes} << 17); del a; time.sleep(0.4)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}]); {hold}"
    bare = peak_memory([sys.executable, "-c", "import numpy, time; time.sleep(0.4)"])
    grown = (peak_memory([sys.executable, "-c", nested]) - 2 * bare) / 2**20
    assert grown == pytest.approx(2 * megabytes, abs=40)
    assert np.isfinite(bare) and bare > 5e6


@linux
def test_a_failed_command_is_an_error_with_its_last_line():
    with pytest.raises(CostlError, match=r"exit code 1.*no such thing"):
        peak_memory([sys.executable, "-c", "raise SystemExit('no such thing')"])

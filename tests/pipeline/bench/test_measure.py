"""Measured CPU seconds and peak memory of this process and of child processes that use a known amount."""

from __future__ import annotations

import multiprocessing
import sys
import time

import numpy as np
import pytest

from costl.pipeline.bench.measure import Cost, best, can_measure_memory, cost_of, peak_memory
from costl.pipeline.errors import CostlError

BURNED_S = 0.4
# Uses this many CPU seconds, whatever other load there is, and prints how many it has used by its own clock.
BURN = f"import time\nwhile time.process_time() < {BURNED_S}: sum(range(1000))\nprint(time.process_time())"
linux = pytest.mark.skipif(not can_measure_memory(), reason="this system does not report the memory of other processes")


def burn(seconds: float) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        sum(range(1000))


def run(code: str) -> str:
    import subprocess

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count children")
def test_cpu_seconds_of_a_child_are_counted():
    burned, cost = cost_of(lambda: float(run(BURN)))
    assert burned >= BURNED_S
    assert burned <= cost.cpu_s < burned + 0.3  # starting and waiting for a process takes some time too


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count children")
def test_cpu_seconds_of_a_child_that_is_killed_are_counted():
    def work() -> float:
        receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=burn_and_wait, args=(send,))
        child.start()
        burned = receive.recv()
        child.kill()
        child.join()
        receive.close(), send.close()
        return burned

    burned, cost = cost_of(work)
    assert burned <= cost.cpu_s < burned + 0.3


def burn_and_wait(send) -> None:
    before = time.process_time()
    burn(BURNED_S)
    send.send(time.process_time() - before)
    time.sleep(60)


def test_sleeping_takes_no_cpu_time_and_computing_does():
    _, waited = cost_of(lambda: time.sleep(0.3))
    _, burned = cost_of(lambda: burn(0.3))
    assert waited.wall_s >= 0.3 and waited.cpu_s < 0.1
    assert burned.wall_s >= 0.29 and 0.3 <= burned.cpu_s < 0.4


def test_costs_scale_and_best_takes_the_minimum_of_each():
    assert Cost(2.0, 3.0).scaled(0.5) == Cost(1.0, 1.5)
    assert best([Cost(2.0, 3.0), Cost(1.0, 4.0)]) == Cost(1.0, 3.0)


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

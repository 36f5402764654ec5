"""A Dask scheduler and its workers, as processes of their own on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from preloaded import ROOT, Preloaded


class Dask(Preloaded):
    modules = ("distributed.cli.dask_scheduler", "distributed.cli.dask_worker")


class Machines:
    """A scheduler and workers, each in its own process, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, log: Path):
        self._log = log.open("w")
        self._scheduler_file = log.with_suffix(".json")
        self._running = [
            self._start("scheduler", "--scheduler-file", str(self._scheduler_file), "--host", "127.0.0.1", "--port", "0")
        ]
        wait_until(lambda: self._scheduler_file.exists() and self._scheduler_file.read_text().endswith("}"))
        self.address = json.loads(self._scheduler_file.read_text())["address"]

    def worker(self, *options: str, **environment: str) -> subprocess.Popen:
        started = self._start("worker", self.address, "--nthreads", "1", *(options or ("--no-nanny",)), **environment)
        self._running.append(started)
        return started

    def close(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()
        self._log.close()

    def _start(self, kind: str, *arguments: str, **environment: str) -> subprocess.Popen:
        command = ["-m", "distributed.cli.dask_" + kind, *arguments, "--no-dashboard"]
        where = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        return Dask(command, stdout=self._log, stderr=self._log, env=where)


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def wait_for_workers(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=60)

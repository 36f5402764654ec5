"""Starts new processes that do not run the script of the user, and counts the cores for them.

Each process that multiprocessing spawns runs that script again, to know the classes and functions in it. All that is sent
from here belongs to modules, and many a script has no `if __name__ == "__main__":`.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FunctionType, SimpleNamespace
from typing import Any


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        if sys.platform == "win32":
            from multiprocessing.popen_spawn_win32 import Popen

            name = "__init__"
        else:
            from multiprocessing.popen_spawn_posix import Popen

            name = "_launch"
        # The method that starts the process, with another `spawn` in it. All others who spawn keep theirs.
        method = getattr(Popen, name)
        changed = SimpleNamespace(**vars(spawn) | {"get_preparation_data": _without_main})
        start = FunctionType(method.__code__, method.__globals__ | {"spawn": changed})
        return type("Popen", (Popen,), {name: start})(process_obj)


class NewProcesses(SpawnContext):
    """A context of multiprocessing for processes that never run the user's script. Their targets are functions of modules."""

    Process = _Process


def cpu_cores() -> int:
    """The number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _without_main(name: str) -> dict[str, Any]:
    """What multiprocessing tells a new process about this one, without its script."""
    return {key: value for key, value in spawn.get_preparation_data(name).items() if not key.startswith("init_main")}

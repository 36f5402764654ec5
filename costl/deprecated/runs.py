"""`costl.runs`, as it was called before: now `costl.training.run_folder`."""

from typing import Any

from costl.deprecated import from_new_place

_MOVED = {"open_cache": "costl.training.run_folder", "read_run": "costl.training.run_folder"}


def __getattr__(name: str) -> Any:
    return from_new_place(__name__, name, _MOVED)

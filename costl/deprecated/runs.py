"""`costl.runs`, the old name of `costl.training.run_folder`."""

from typing import Any

from costl.deprecated import moved_object

_NEW_NAMES = {"open_cache": "costl.training.run_folder:open_cache", "read_run": "costl.training.run_folder:read_run"}


def __getattr__(name: str) -> Any:
    return moved_object(__name__, name, _NEW_NAMES)

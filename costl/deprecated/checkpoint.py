"""`costl.checkpoint`, as it was called before: now `costl.training.checkpoint`."""

from typing import Any

from costl.deprecated import from_new_place

_MOVED = {"load_checkpoint": "costl.training.checkpoint"}


def __getattr__(name: str) -> Any:
    return from_new_place(__name__, name, _MOVED)

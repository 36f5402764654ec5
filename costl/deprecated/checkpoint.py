"""`costl.checkpoint`, the old name of `costl.training.checkpoint`."""

from typing import Any

from costl.deprecated import moved_object

_NEW_NAMES = {"load_checkpoint": "costl.training.checkpoint:load_checkpoint"}


def __getattr__(name: str) -> Any:
    return moved_object(__name__, name, _NEW_NAMES)

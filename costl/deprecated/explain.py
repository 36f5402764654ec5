"""`costl.explain`, as it was called before: now `costl.predict.attention_maps`."""

from typing import Any

from costl.deprecated import from_new_place

_MOVED = {"looks_at": "costl.predict.attention_maps"}


def __getattr__(name: str) -> Any:
    return from_new_place(__name__, name, _MOVED)

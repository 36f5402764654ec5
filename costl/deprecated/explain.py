"""`costl.explain`, the old name of `costl.predict.attention_maps`."""

from typing import Any

from costl.deprecated import moved_object

_NEW_NAMES = {"looks_at": "costl.predict.attention_maps:clip_attention_maps"}


def __getattr__(name: str) -> Any:
    return moved_object(__name__, name, _NEW_NAMES)

"""YAML as settings need it: plain values, every key once, and nothing by which a short text fills the memory."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

LARGEST_BITS = 4096  # of a whole number: larger ones Python refuses to print

# What the library lets through where a tag does not fit its value (`!!bool maybe`) or a nest is too deep.
_FOREIGN = (
    *(yaml.YAMLError, RecursionError, ValueError, TypeError),
    *(KeyError, IndexError, AttributeError, OverflowError, MemoryError),
)


def read_yaml(text: str) -> Any:
    """A YAML text as plain values. Raises ValueError, in one line, for what is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except _FOREIGN as error:
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # Ten aliases of ten aliases of ten ... are a few lines, and more than any memory once they are merged or shown.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "found an alias (*name); write the value itself", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:  # of two, the last would silently win
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > LARGEST_BITS:
            raise yaml.constructor.ConstructorError(None, None, "found a number too large", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)

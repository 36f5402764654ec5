"""Reads and writes YAML as plain values of YAML 1.2, and refuses a key that is given twice.

PyYAML reads YAML 1.1, in which 1e-4 is a text, 012 is ten, 1:30 is ninety and NO is false.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

# The core schema of YAML 1.2.2, section 10.3.2, and the merge key, which is common: tag and pattern.
_SCHEMA = (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    ("merge", "<<"),
)
_MAX_CHARACTERS, _MAX_VALUES = 1 << 20, 100_000
_MAX_DEPTH = 100  # of brackets: on one line, PyYAML takes a time that grows with the square of their depth
_MAX_BITS = 4096  # of an integer: Python refuses to print larger ones
# What PyYAML raises, also where a tag does not fit its value (`!!bool maybe`).
_PYYAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError)


def read_yaml(text: str) -> Any:
    """A YAML text as plain values. Raises ValueError for invalid YAML, and for more characters or values than are accepted.

    Aliases make a large value of a small text: the values of an alias count each time that it is used.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters, at most {_MAX_CHARACTERS} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except _PYYAML_ERRORS as error:
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from None


def write_yaml(value: Any) -> str:
    """Plain values as YAML text, keys in their order; `read_yaml` returns the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def is_number(text: str) -> bool:
    """Whether a text would be read as a number without quotes."""
    return any(re.fullmatch(pattern, text) for tag, pattern in _SCHEMA if tag in ("int", "float"))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML silently takes the last, and aliases that would fill the memory."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def __init__(self, stream: str):
        super().__init__(stream)
        self._sizes: dict[yaml.Node, int] = {}  # the number of values in complete nodes, with those of aliases

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level == _MAX_DEPTH:
            raise RecursionError
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        assert node is not None
        if is_alias and node not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "found an alias (*name) inside what it stands for", mark)
        self._sizes[node] = 1 + sum(self._sizes[child] for child in _children(node))
        if self._sizes[node] > _MAX_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {_MAX_VALUES} values when its aliases are written out", mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """An integer; a leading zero has no meaning."""
        text = str(self.construct_scalar(node))
        value = int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if value.bit_length() > _MAX_BITS:
            raise yaml.constructor.ConstructorError(None, None, "found a number too large", node.start_mark)
        return value


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for key_and_value in node.value for child in key_and_value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `_Loader` would not read as texts."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]


for _class in (_Loader, _Dumper):
    for _tag, _pattern in _SCHEMA:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)

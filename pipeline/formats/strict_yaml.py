"""YAML as people write it: plain values of YAML 1.2, a key given once, and the way back.

YAML 1.1, which the library reads by itself, takes 1e-4 for a text, 012 for ten, 1:30 for ninety and NO for false.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

# The core schema of YAML 1.2.2, section 10.3.2, and the merge key, which many use: tag, form, first characters.
_PLAIN = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
)
_MOST_CHARACTERS, _MOST_VALUES = 1 << 20, 100_000
_LARGEST_BITS = 4096  # of a whole number: larger ones Python refuses to print
# What the library lets through where a tag does not fit its value (`!!bool maybe`).
_FOREIGN = (
    *(yaml.YAMLError, ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, OverflowError, MemoryError),
)
_BASES = {"0o": 8, "0x": 16}


class BadYaml(yaml.YAMLError, ValueError):
    """What is wrong with a text that is no YAML, in one line."""


def read_yaml(text: str) -> Any:
    """A YAML text as plain values. Raises BadYaml for what is none, and for more than settings can be.

    Aliases make a small text a large value: each counts as often as it would be written out.
    """
    if len(text) > _MOST_CHARACTERS:
        raise BadYaml(f"{len(text)} characters, at most {_MOST_CHARACTERS} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise BadYaml("nested too deeply") from None
    except _FOREIGN as error:
        raise BadYaml(" ".join(str(error).split())[:300] or type(error).__name__) from None


def write_yaml(value: Any) -> str:
    """Plain values as YAML text, keys in their order; `read_yaml` of it gives the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def is_number(text: str) -> bool:
    """Whether a text would be a number if it stood there without quotes."""
    return any(re.fullmatch(form, text) for tag, form, _ in _PLAIN if tag in ("int", "float"))


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, where the last would silently win, and aliases that would fill the memory."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def __init__(self, stream: str):
        super().__init__(stream)
        self._sizes: dict[yaml.Node, int] = {}  # of whole nodes, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        node = super().compose_node(parent, index)
        assert node is not None
        if alias and node not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "found an alias (*name) inside what it stands for", mark)
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for entry in inside for part in (entry if isinstance(node, yaml.MappingNode) else (entry,))]
        self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        if self._sizes[node] > _MOST_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {_MOST_VALUES} values when its aliases are written out", mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """A whole number; a leading zero means nothing."""
        text = str(self.construct_scalar(node))
        base = _BASES.get(text[:2], 10)
        value = int(text if base == 10 else text[2:], base)
        if value.bit_length() > _LARGEST_BITS:
            raise yaml.constructor.ConstructorError(None, None, "found a number too large", node.start_mark)
        return value


class _Dumper(yaml.SafeDumper):
    """Puts quotes around the texts that `_Loader` would take for something else."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]


for _kind in (_Loader, _Dumper):
    for _tag, _form, _first in _PLAIN:
        _first_ones = [character.strip("\0") for character in _first]
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_form})$"), _first_ones)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)

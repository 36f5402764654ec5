"""YAML as people write it: plain values of YAML 1.2, a key given once, and the way back.

YAML 1.1, which the library reads by itself, takes 1e-4 for a text, 012 for ten, 1:30 for ninety and NO for false.
"""

from __future__ import annotations

import re
from typing import Any

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
_BASES = {"0o": 8, "0x": 16}


def read_yaml(text: str) -> Any:
    """A YAML text as plain values. Raises YAMLError, ValueError or RecursionError for what is none."""
    return yaml.load(text, Loader=_Loader)


def write_yaml(value: Any) -> str:
    """Plain values as YAML text, keys in their order; `read_yaml` of it gives the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def is_number(text: str) -> bool:
    """Whether a text would be a number if it stood there without quotes."""
    return any(re.fullmatch(form, text) for tag, form, _ in _PLAIN if tag in ("int", "float"))


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, where the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """A whole number; a leading zero means nothing."""
        text = str(self.construct_scalar(node))
        base = _BASES.get(text[:2], 10)
        return int(text if base == 10 else text[2:], base)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around the texts that `_Loader` would take for something else."""


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}  # its own, or YAML 1.1's would stay
    for _tag, _form, _first in _PLAIN:
        _first_ones = [character.strip("\0") for character in _first]
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_form})$"), _first_ones)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)

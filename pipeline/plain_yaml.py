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
_MOST_CHARACTERS, _MOST_VALUES = 1 << 20, 100_000
_BASES = {"0o": 8, "0x": 16}


def read_yaml(text: str) -> Any:
    """A YAML text as plain values. Raises ValueError for what is none, and for more than settings can be.

    Aliases make a small text a large value: each counts as often as it would be written out.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{len(text)} characters, at most {_MOST_CHARACTERS} are read")
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _refuse_many(found)
    return found


def write_yaml(value: Any) -> str:
    """Plain values as YAML text, keys in their order; `read_yaml` of it gives the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def is_number(text: str) -> bool:
    """Whether a text would be a number if it stood there without quotes."""
    return any(re.fullmatch(form, text) for tag, form, _ in _PLAIN if tag in ("int", "float"))


def _refuse_many(found: Any) -> None:
    """Raises ValueError for more values than any settings have, counted as often as they would be written out."""
    waiting, count = [found], 0
    while waiting:
        value = waiting.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        count += 1 + len(inner)
        if count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values when its aliases are written out")
        waiting.extend(inner)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, where the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", node.start_mark)
            seen.add(key.value)
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

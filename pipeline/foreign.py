"""Texts that somebody else wrote, read as plain values or refused with a ValueError: JSON and YAML without surprises.

Neither runs anything or opens anything. What is refused besides what the formats refuse: a key given twice, where the last
would silently win; NaN and infinities; halves of characters, which no file can hold; nesting beyond Python's patience; and
YAML whose aliases make a small text a large value.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import yaml

LARGEST_YAML = 1 << 20  # characters
_MOST_VALUES = 100_000
_HALF = re.compile(r"[\ud800-\udfff]")


def read_json(text: str) -> Any:
    """A JSON text as plain values. Raises ValueError for what is none, or is refused."""
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # A half can only come of an escape: a file that was decoded holds none.
    if "\\u" in text and _HALF.search(json.dumps(found, ensure_ascii=False)):
        raise ValueError("half a character, a surrogate without its other half")
    return found


def read_yaml(text: str) -> Any:
    """A YAML text as plain values. Raises ValueError for what is none, or is refused."""
    if len(text) > LARGEST_YAML:
        raise ValueError(f"{len(text)} characters, at most {LARGEST_YAML} are read")
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _refuse_many(found)
    return found


def shown(value: Any, most: int = 80) -> str:
    """A value as an error shows it: its beginning, however large it is."""
    if isinstance(value, (dict, list)) and len(value) > most:
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of very many digits, say
        return f"a huge {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not a number JSON knows")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is larger than any number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:80]!r} is given twice")
    return found


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
    """Plain YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is given twice", node.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

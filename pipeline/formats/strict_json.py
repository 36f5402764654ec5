"""JSON that somebody else wrote, read as plain values or refused with a ValueError, and values as errors show them."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_HALF = re.compile(r"[\ud800-\udfff]")


def read_json(text: str) -> Any:
    """A JSON text as plain values. Raises ValueError for what is none, and for what many programs take without a word.

    That is: a key given twice, where the last would win; NaN and infinities; halves of characters, which no file can hold;
    and nesting beyond Python's patience.
    """
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # A half can only come of an escape: a file that was decoded holds none.
    if "\\u" in text and _HALF.search(json.dumps(found, ensure_ascii=False)):
        raise ValueError("half a character, a surrogate without its other half")
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

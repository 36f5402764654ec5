"""Reads untrusted JSON and JSONL as plain values, or raises an error, and abbreviates values for error messages."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as PowerShell writes it. Raises UsageError."""
    try:
        data = path.read_bytes()
        is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text (byte {error.object[error.start]:#x}). Save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def as_jsonl(text: str) -> str:
    """A text that is one JSON list as JSONL, with an item on each line. Every other text stays as it is."""
    try:
        items = read_json(text) if text.lstrip().startswith("[") else None
    except ValueError:
        return text
    return "".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in items) if isinstance(items, list) else text


def read_json(text: str) -> Any:
    """A JSON text as plain values. Raises ValueError for invalid JSON, and for values that many programs accept silently.

    These are: a key that is given twice, of which the last would win; NaN and infinities; unpaired surrogates, which cannot
    be written to a file; and nesting that is too deep for Python.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_unique_keys
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # A surrogate can only come from an escape: a decoded text contains none.
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half a character, a surrogate without its other half")
    return value


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL text that are not blank, each with its number, counted from 1.

    Lines end at a line feed alone: JSON allows U+2028 and similar characters inside a string.
    """
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if line.strip():
            yield number, line


def abbreviated(value: Any, max_characters: int = 80) -> str:
    """A value as text for an error message: the beginning of its `repr`, or the size of a large list or mapping."""
    if isinstance(value, (dict, list)) and len(value) > max_characters:
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # for example an integer with very many digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= max_characters else f"{text[:max_characters]}..."


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number JSON knows")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is larger than any number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        first = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{first[:80]!r} is given twice")
    return values

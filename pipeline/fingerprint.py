"""What decides a cache entry, as sorted text and its hash, and what differs when two of them disagree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ABSENT = object()


def canonical(settings: Mapping[str, Any]) -> str:
    """The one JSON text of these settings: sorted keys, no spaces. Raises ValueError for NaN and infinities."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(settings: Mapping[str, Any]) -> str:
    """sha256 of the canonical text, hex: equal exactly when the settings are."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()


def explain_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, was: str = "cache has", now: str = "asked for"
) -> list[str]:
    """One phrase for every field that differs, such as `fps: cache has 0.5, asked for 1.0`, sorted by field."""
    fields = sorted(old.keys() | new.keys())
    return [
        f"{field}: {was} {_show(old.get(field, _ABSENT))}, {now} {_show(new.get(field, _ABSENT))}"
        for field in fields
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
    ]


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    # A sha256 is recognised by its beginning; in full it would bury the sentence.
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return f"{text[:12]}…" if is_hash else text

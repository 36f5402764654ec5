"""Fingerprints: settings that decide a result as canonical text and its hash, and the differences between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_MISSING = object()


def canonical_json(settings: Mapping[str, Any]) -> str:
    """The JSON text of these settings with sorted keys and no spaces. Raises ValueError for NaN and infinities."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(settings: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON in hex; equal if and only if the settings are equal."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()


def explain_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], *, was: str = "cache has", now: str = "asked for"
) -> list[str]:
    """A phrase for each field that differs, such as `fps: cache has 0.5, asked for 1.0`, sorted by field."""
    differences = []
    for field in sorted(old.keys() | new.keys()):
        before = old.get(field, _MISSING)
        after = new.get(field, _MISSING)
        if before != after:
            differences.append(f"{field}: {was} {_text(before)}, {now} {_text(after)}")
    return differences


def _text(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    # The first digits identify a sha256; all of them would make the message unreadable.
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return f"{text[:12]}…" if is_hash else text

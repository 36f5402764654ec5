"""Keeps the store of features and proxies of single videos below a size: the least recently used are removed first."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.errors import CacheError, UsageError

DEFAULT_BYTES = 20 * 10**9
PROXIES = "proxies"  # the folder of the store with copies of videos that browsers can play
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class _Stored:
    """The features of one video or of its windows, or a proxy: the `path` of its cache or file, its size, and its last use."""

    path: Path
    size_bytes: int
    used_ns: int


def parse_size(text: str) -> int:
    """The bytes of a size such as 20GB, 500 MB or 1000. Raises UsageError for another text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not match:
        raise UsageError(f"{text!r}: not a size. Expected a number with a unit, such as 20GB or 500MB.")
    return round(float(match[1]) * _UNITS[match[2]])


def mark_used(path: Path) -> None:
    """Records that the cache or the proxy at `path` is used now."""
    with suppress(OSError):  # a store that cannot be written is never cleaned up either
        os.utime(path)


def remove_least_used(store: Path, max_bytes: int, *, keep: Path) -> list[Path]:
    """Removes caches and proxies of the store, least recently used first, until all of it takes at most `max_bytes`.

    Returns their paths. `keep` is never removed, nor what another process is writing, nor any file that does not belong to
    a store.
    """
    stored = sorted(_stored_videos(store), key=lambda one: one.used_ns)
    excess = sum(one.size_bytes for one in stored) - max_bytes
    removed: list[Path] = []
    for one in stored:
        if excess <= 0:
            break
        if one.path != keep and _remove(one.path):
            removed.append(one.path)
            excess -= one.size_bytes
    return removed


def _stored_videos(store: Path) -> Iterator[_Stored]:
    for path in store.glob("*/*.h5"):
        if not (re.fullmatch(r"[0-9a-f]{16}", path.parent.name) and re.fullmatch(r"[0-9a-f]{64}(\.windows)?", path.stem)):
            continue
        with suppress(OSError):  # another process may have removed it
            size = sum(file.stat().st_size for file in (path, *parts_folder(path).rglob("*")) if file.is_file())
            yield _Stored(path, size, path.stat().st_mtime_ns)
    for path in (store / PROXIES).glob("*"):
        if re.fullmatch(r"[0-9a-f]{64}\.(mp4|webm)", path.name):
            with suppress(OSError):
                yield _Stored(path, path.stat().st_size, path.stat().st_mtime_ns)


def _remove(path: Path) -> bool:
    """Removes a proxy, or a cache, its index first, so that nobody finds one without parts.

    False if it is in use or cannot be removed.
    """
    try:
        if path.parent.name == PROXIES:
            path.unlink()
            return True
        with locked_cache(path):
            path.unlink()
            shutil.rmtree(parts_folder(path))
            path.with_name(f"{path.name}.runs.jsonl").unlink(missing_ok=True)
    except (CacheError, OSError):
        return False
    return True

"""Whether annotation files are the official ones, by the checksums in official_files.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

_TABLE = Path(__file__).with_name("official_files.csv")


def compare_with_release(benchmark: str, digests: Mapping[str, str]) -> str:
    """A sentence about the annotation files that differ from the release, and those without a known checksum.

    `digests` has the sha256 in hex of each file that was read, by its name.
    """
    with _TABLE.open(encoding="utf-8", newline="") as file:
        known = {row["file"]: row["sha256"] for row in csv.DictReader(file) if row["benchmark"] == benchmark}
    unknown = sorted(name for name in digests if name not in known)
    differing = sorted(name for name, digest in digests.items() if name in known and digest != known[name])
    same = sorted(digests.keys() - {*unknown, *differing})
    parts = {
        "other than in the official release (sha256)": differing,
        "without a known checksum": unknown,
        "as in the official release": same,
    }
    listed = [f"{kind}: {', '.join(names)}" for kind, names in parts.items() if names]
    return f"Annotation files {'; '.join(listed)}."

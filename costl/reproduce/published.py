"""The numbers that others have published on a benchmark. published.csv holds them; every number names its source."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path(__file__).with_name("published.csv")
_ABOUT = ("benchmark", "method", "features", "year", "source", "note")


@dataclass(frozen=True)
class PublishedRow:
    """A method with its features, year and source, and its `numbers` (percent, as printed there) by the column of papers.

    `note` says what to know before comparing with it.
    """

    method: str
    features: str
    year: str
    source: str
    note: str
    numbers: Mapping[str, str]


def published_rows(benchmark: str) -> list[PublishedRow]:
    """The rows of a benchmark on its test split, the earliest year first; empty where no source is known."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        rows = [_row(values) for values in csv.DictReader(file) if values["benchmark"] == benchmark]
    return sorted(rows, key=lambda row: row.year or "9999")


def _row(values: Mapping[str, str]) -> PublishedRow:
    numbers = {name: value for name, value in values.items() if name not in _ABOUT and value}
    return PublishedRow(**{name: values[name] for name in _ABOUT[1:]}, numbers=numbers)

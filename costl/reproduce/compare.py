"""Compares two reproductions of one benchmark, query by query: the paired test of their means over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costl.metrics.compare import Comparison, paired_rows
from costl.pipeline.errors import CacheError, UsageError
from costl.reproduce.results import RESULTS

MEANING = (
    "Each number is the mean over the seeds of a folder. Interval and p show what other queries of this kind would change; "
    "the standard deviations in the tables show what other seeds would."
)


@dataclass(frozen=True)
class _Folder:
    path: Path
    benchmark: str
    official: bool
    seeds: int
    qids: list[int | str]
    domains: list[str]
    values: Mapping[str, np.ndarray]


def compare_reproductions(a: Path, b: Path) -> Comparison:
    """Paired comparison of two folders of `costl reproduce` on the same test queries; the statistics are those of `compare`.

    Raises UsageError for another folder, and for folders of other benchmarks, test queries or rules; CacheError for a
    damaged one.
    """
    one, other = _read(a), _read(b)
    if one.benchmark != other.benchmark:
        raise UsageError(f"{a} is of {one.benchmark} and {b} of {other.benchmark}: compare two of the same benchmark.")
    if one.qids != other.qids:
        raise UsageError(f"{a} and {b} have other test queries ({len(one.qids)} and {len(other.qids)}): nothing to pair.")
    if one.official != other.official:
        strict = b if one.official else a
        raise UsageError(f"{strict} has unanswered queries and is scored by other rules: complete its videos and repeat it.")
    notes = (f"A has {one.seeds} seeds and B {other.seeds}.",)
    rows = paired_rows(one.values, other.values, groups=one.domains)
    return Comparison(a, b, one.benchmark, rows, notes, MEANING)


def _read(folder: Path) -> _Folder:
    path = folder / RESULTS
    if not path.is_file():
        raise UsageError(f"{folder}: no {RESULTS} in it, expected a folder that costl reproduce has finished.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        queries = content["per_query"]
        first = next(iter(content["selections"].values()))
        return _Folder(
            path=folder,
            benchmark=str(content["benchmark"]),
            official=bool(content["official"]),
            seeds=len(first["by_seed"]),
            qids=list(queries["qid"]),
            domains=list(queries["domain"]),
            values={name: np.array(values, dtype=float) for name, values in queries["values"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise CacheError(f"{path}: damaged ({error!r}). Run the same costl reproduce again.") from error

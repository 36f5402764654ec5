"""Compares two prediction files on the same queries: is the difference larger than the choice of queries explains?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.metrics.bootstrap import bootstrap_intervals, sign_flip_p
from costl.metrics.compute import benchmark_of, measure
from costl.metrics.paper_table import paper_table
from costl.metrics.score_files import read_predictions, read_truth
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.table import table

SIGNIFICANT = 0.05
MEANING = (
    "Interval and p show what other queries of this kind would change, not what another training run would: two seeds of one "
    "model often differ by more than published methods do. Compare means over several seeds."
)


@dataclass(frozen=True)
class Row:
    """One headline number of both files, in percent.

    `interval` is the 95 % interval of the difference, None for fewer than two queries. `queries` counts the queries that
    the number is a mean of.
    """

    a: float
    b: float
    difference: float
    interval: tuple[float, float] | None
    p: float
    queries: int


@dataclass(frozen=True)
class Comparison:
    """File or folder `b` compared with `a` by the rules of `benchmark`: a `Row` for every headline number that both have,
    the notes about each, and what the intervals mean."""

    a: Path
    b: Path
    benchmark: str
    rows: dict[str, Row]
    notes: tuple[str, ...] = ()
    meaning: str = MEANING
    exit_code = 0

    def lines(self) -> list[str]:
        """The rows for the terminal, then what they mean."""
        rows = [[name, *_cells(row)] for name, row in self.rows.items()]
        lines = [f"A  {self.a}", f"B  {self.b}", "", *table(["", "A", "B", "B - A", "95 % interval", "p", "queries"], rows), ""]
        return [*lines, *(f"note: {note}" for note in self.notes), self.verdict(), self.meaning]

    def paper_table(self, style: str) -> list[str]:
        """A row for each file, in Markdown ("md") or "latex"."""
        a, b = (self.a.stem, self.b.stem) if self.a.stem != self.b.stem else (str(self.a), str(self.b))
        of_a, of_b = ({name: getattr(row, file) for name, row in self.rows.items()} for file in "ab")
        return paper_table({a: [of_a], b: [of_b]}, benchmark=self.benchmark, style=style)

    def verdict(self) -> str:
        """One sentence: how many differences are significant, and how many would be by chance."""
        significant = [row.difference for row in self.rows.values() if row.p < SIGNIFICANT]
        better = sum(difference > 0 for difference in significant)
        worse = len(significant) - better
        count = len(self.rows)
        return (
            f"Of {count} numbers B is better in {better} and worse in {worse} at p < {SIGNIFICANT}; "
            f"of {count} with no difference at all about {SIGNIFICANT * count:.1f} would be."
        )

    def data(self) -> dict[str, Any]:
        """All of it as JSON-compatible values."""
        return asdict(self) | {"a": str(self.a), "b": str(self.b), "verdict": self.verdict()}


def compare(
    a: Path, b: Path, *, truth: Path, benchmark: str | None = None, official: bool = False
) -> Comparison:
    """Paired comparison of two submission files, query by query.

    The interval is a 95 % percentile bootstrap of the mean difference; p is from a two-sided sign-flip test of it (exact
    for up to 13 queries). Raises UsageError as `score_files` does, and when the files share no number.
    """
    queries = read_truth(truth)
    benchmark = benchmark or benchmark_of(queries)
    files = [read_predictions(path, queries, truth=truth) for path in (a, b)]
    measured = [measure(predictions, queries, benchmark=benchmark, official=official) for predictions in files]
    (metrics_a, values_a), (metrics_b, values_b) = measured
    notes = [f"{name}: {note}" for name, m in (("A", metrics_a), ("B", metrics_b)) for note in m.get("notes", ())]
    if not set(values_a) & set(values_b):
        raise UsageError(f"{a} and {b}: one predicts only moments, the other only saliency; nothing to compare.")
    rows = paired_rows(values_a, values_b, groups=[query.domain for query in queries])
    return Comparison(a, b, benchmark, rows, tuple(notes))


def paired_rows(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], *, groups: Sequence[str]
) -> dict[str, Row]:
    """A row for each number that both have, from the values of the same queries [b], NaN where a query does not count.

    `groups` [b] as for `bootstrap_intervals`.
    """
    differences = {name: b[name] - a[name] for name in a if name in b}
    intervals = bootstrap_intervals(differences, groups=groups)
    p = sign_flip_p(differences)
    return {
        name: Row(
            a=float(np.nanmean(a[name])),
            b=float(np.nanmean(b[name])),
            difference=float(np.nanmean(difference)),
            interval=intervals.get(name),
            p=p[name],
            queries=int(np.count_nonzero(~np.isnan(difference))),
        )
        for name, difference in differences.items()
    }


def _cells(row: Row) -> list[str]:
    interval = f"{row.interval[0]:+.2f} .. {row.interval[1]:+.2f}" if row.interval else "-"
    return [f"{row.a:.2f}", f"{row.b:.2f}", f"{row.difference:+.2f}", interval, f"{row.p:.4f}", f"{row.queries}"]

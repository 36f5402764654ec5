"""The tables of an ablation: mean and deviation over seeds, and paired differences from the full model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Numbers = Mapping[str, float]
COLUMNS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
# The 97.5 % quantile of Student's t by degrees of freedom, for the 95 % interval of a mean over few seeds.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Row:
    """A variant: its overrides, and its headline numbers (percent) by split for each seed."""

    name: str
    overrides: tuple[str, ...]
    by_seed: tuple[Mapping[str, Numbers], ...]

    def values(self, split: str, key: str) -> np.ndarray:
        """One number of every seed, NaN where the labels do not give it."""
        return np.array([numbers[split].get(key, math.nan) for numbers in self.by_seed])


@dataclass(frozen=True)
class Difference:
    """Variant minus full model, paired by seed: mean, standard deviation over seeds, and half the width of the 95 % interval
    of the mean by Student's t. The last two are NaN for one seed."""

    mean: float
    deviation: float
    half: float


@dataclass(frozen=True)
class Ablation:
    """The result of `ablate`. `references` have no seeds (one entry in `by_seed`); the first of `rows` is the full model."""

    folder: Path
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    references: tuple[Row, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    exit_code = 0

    @property
    def columns(self) -> dict[str, str]:
        """The headline numbers that the labels give, or all numbers if they give none of these. Short name -> key."""
        available = {key: None for row in self.rows for split in self.splits for key in row.by_seed[0][split]}
        return {short: key for short, key in COLUMNS.items() if key in available} or {key: key for key in available}

    def difference(self, row: Row, split: str, key: str) -> Difference:
        """The difference of a variant from the full model on the same seeds."""
        differences = row.values(split, key) - self.rows[0].values(split, key)
        deviation = _deviation(differences)
        half = _student_t(len(differences) - 1) * deviation / math.sqrt(len(differences))
        return Difference(float(differences.mean()), deviation, half)

    def lines(self) -> list[str]:
        """Both tables for the terminal, the splits side by side."""
        first, *others = (_table_lines(title, rows) for title, rows in self._tables())
        return [*first, *(line for table in others for line in ["", *table])]

    def data(self) -> dict[str, Any]:
        """Every number of every seed, means, deviations and differences, as JSON-compatible values (None instead of NaN)."""
        rows = {}
        for row in (*self.references, *self.rows):
            rows[row.name] = {
                "changes": list(row.overrides),
                "by_seed": [{split: dict(numbers) for split, numbers in seed.items()} for seed in row.by_seed],
                "mean": _by_number(self, partial(_mean, row)),
                "deviation": _by_number(self, partial(_deviation_of, row)),
            }
        for row in self.rows[1:]:
            rows[row.name]["difference"] = _by_number(self, partial(_difference, self, row))
        return {"splits": list(self.splits), "seeds": list(self.seeds), "rows": rows, "notes": list(self.notes)}

    def messages(self) -> list[str]:
        """The notes, and where the runs are."""
        return [*self.notes, f"Runs, every number and the tables: {self.folder}/"]

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        """Title and rows of cells of each table; its first two rows are the head."""
        cells = [(split, key) for split in self.splits for key in self.columns.values()]
        head = [
            ["", *(split for split in self.splits for _ in self.columns)],
            ["", *(short for _ in self.splits for short in self.columns)],
        ]
        count = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        means = [
            [row.name, *(_mean_cell(row.values(split, key)) for split, key in cells)]
            for row in (*self.references, *self.rows)
        ]
        yield f"mean ± standard deviation, {count}", head + means
        differences = [
            [row.name, *(_difference_cell(self.difference(row, split, key)) for split, key in cells)]
            for row in self.rows[1:]
        ]
        if differences:
            title = f"variant minus full model, paired by seed: mean ± standard deviation [95 % interval], {count}"
            yield title, head + differences


def markdown(result: Ablation) -> str:
    """The tables in Markdown, and the overrides of each variant."""
    parts = ["# Ablation"]
    for title, rows in result._tables():
        head = ["|".join(["", *(f" {split} {name} " for split, name in zip(*rows[:2], strict=True)), ""])]
        head.append(f"|---|{'---|' * (len(rows[0]) - 1)}")
        parts.append(
            "\n".join([f"{title[0].upper()}{title[1:]}.\n", *head, *("| " + " | ".join(r) + " |" for r in rows[2:])])
        )
    changes = [f"- {row.name}: `{'`, `'.join(row.overrides)}`" for row in result.rows if row.overrides]
    parts += ["\n".join(["What each variant changes:\n", *changes])] if changes else []
    return "\n\n".join([*parts, *result.notes]) + "\n"


def _mean(row: Row, split: str, key: str) -> float:
    return float(row.values(split, key).mean())


def _deviation_of(row: Row, split: str, key: str) -> float:
    return _deviation(row.values(split, key))


def _difference(result: Ablation, row: Row, split: str, key: str) -> dict[str, float]:
    return vars(result.difference(row, split, key))


def _by_number(result: Ablation, value_of: Callable[[str, str], Any]) -> dict[str, dict[str, Any]]:
    """{split: {key: value_of(split, key)}} for all numbers in the tables."""
    keys = result.columns.values()
    return {split: {key: _none_for_nan(value_of(split, key)) for key in keys} for split in result.splits}


def _none_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _none_for_nan(inner) for name, inner in value.items()}
    return value if math.isfinite(value) else None


def _deviation(values: np.ndarray) -> float:
    """Sample standard deviation (divisor n - 1), NaN for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _student_t(degrees_of_freedom: int) -> float:
    if degrees_of_freedom == 0:
        return math.nan
    return _STUDENT_T[degrees_of_freedom - 1] if degrees_of_freedom <= len(_STUDENT_T) else 1.96


def _mean_cell(values: np.ndarray) -> str:
    mean = float(values.mean())
    deviation = _deviation(values)
    if math.isnan(mean):
        return "-"
    return f"{mean:.1f}" if math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def _difference_cell(difference: Difference) -> str:
    mean = difference.mean
    if math.isnan(mean):
        return "-"
    if math.isnan(difference.deviation):
        return f"{mean:+.1f}"
    low, high = mean - difference.half, mean + difference.half
    return f"{mean:+.1f} ± {difference.deviation:.1f} [{low:+.1f}, {high:+.1f}]"


def _table_lines(title: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    yield title
    for row in rows:
        yield "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )

"""What an ablation found, as tables: mean and deviation over seeds, and paired differences to the full model."""

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
# Student's t, 97.5 %, by degrees of freedom: what a 95 % interval of a mean over few seeds needs.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Row:
    """A variant: what it changes, and for each seed its headline numbers (percent) on each split."""

    name: str
    overrides: tuple[str, ...]
    by_seed: tuple[Mapping[str, Numbers], ...]

    def values(self, split: str, key: str) -> np.ndarray:
        """One number of every seed, NaN where the labels do not tell it."""
        return np.array([numbers[split].get(key, math.nan) for numbers in self.by_seed])


@dataclass(frozen=True)
class Difference:
    """Variant minus full model, seed by seed: mean, standard deviation over seeds, and half the 95 % interval of the mean
    by Student's t; the last two are NaN for one seed."""

    mean: float
    deviation: float
    half: float


@dataclass(frozen=True)
class Ablation:
    """`references` have no seeds (one entry in `by_seed`); the first of `rows` is the full model."""

    folder: Path
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    references: tuple[Row, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    exit_code = 0

    @property
    def columns(self) -> dict[str, str]:
        """The headline numbers that the labels can tell, or all numbers there are where they tell none of them."""
        known = {key: None for row in self.rows for split in self.splits for key in row.by_seed[0][split]}
        return {short: key for short, key in COLUMNS.items() if key in known} or {key: key for key in known}

    def difference(self, row: Row, split: str, key: str) -> Difference:
        """Of a variant to the full model on the same seeds."""
        apart = row.values(split, key) - self.rows[0].values(split, key)
        deviation = _deviation(apart)
        half = _student(len(apart) - 1) * deviation / math.sqrt(len(apart))
        return Difference(float(apart.mean()), deviation, half)

    def lines(self) -> list[str]:
        """Both tables for the terminal, the splits side by side."""
        first, *others = (_text(title, rows) for title, rows in self._tables())
        return [*first, *(line for table in others for line in ["", *table])]

    def data(self) -> dict[str, Any]:
        """Every number of every seed, means, deviations and differences, as plain values (null where there is none)."""
        rows = {}
        for row in (*self.references, *self.rows):
            rows[row.name] = {
                "changes": list(row.overrides),
                "by_seed": [{split: dict(numbers) for split, numbers in seed.items()} for seed in row.by_seed],
                "mean": _each(self, partial(_mean, row)),
                "deviation": _each(self, partial(_deviation_of, row)),
            }
        for row in self.rows[1:]:
            rows[row.name]["difference"] = _each(self, partial(_difference, self, row))
        return {"splits": list(self.splits), "seeds": list(self.seeds), "rows": rows, "notes": list(self.notes)}

    def messages(self) -> list[str]:
        """The notes, and where the runs are."""
        return [*self.notes, f"Runs, every number and the tables: {self.folder}/"]

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        """Title and rows of text; the first two rows of each table are its head."""
        cells = [(split, key) for split in self.splits for key in self.columns.values()]
        head = [
            ["", *(split for split in self.splits for _ in self.columns)],
            ["", *(short for _ in self.splits for short in self.columns)],
        ]
        count = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        plain = [
            [row.name, *(_spread(row.values(split, key)) for split, key in cells)]
            for row in (*self.references, *self.rows)
        ]
        yield f"mean ± standard deviation, {count}", head + plain
        apart = [
            [row.name, *(_signed(self.difference(row, split, key)) for split, key in cells)] for row in self.rows[1:]
        ]
        if apart:
            title = f"variant minus full model, paired by seed: mean ± standard deviation [95 % interval], {count}"
            yield title, head + apart


def markdown(result: Ablation) -> str:
    """The tables for a README, and what each variant changes."""
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


def _each(result: Ablation, of: Callable[[str, str], Any]) -> dict[str, dict[str, Any]]:
    return {split: {key: _finite(of(split, key)) for key in result.columns.values()} for split in result.splits}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return value if math.isfinite(value) else None


def _deviation(values: np.ndarray) -> float:
    """Standard deviation of a sample (n - 1 below the line), NaN for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _student(freedom: int) -> float:
    return _STUDENT[freedom - 1] if 0 < freedom <= len(_STUDENT) else 1.96 if freedom else math.nan


def _spread(values: np.ndarray) -> str:
    mean, deviation = float(values.mean()), _deviation(values)
    if math.isnan(mean):
        return "-"
    return f"{mean:.1f}" if math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def _signed(apart: Difference) -> str:
    if math.isnan(apart.mean):
        return "-"
    if math.isnan(apart.deviation):
        return f"{apart.mean:+.1f}"
    low, high = apart.mean - apart.half, apart.mean + apart.half
    return f"{apart.mean:+.1f} ± {apart.deviation:.1f} [{low:+.1f}, {high:+.1f}]"


def _text(title: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    yield title
    for row in rows:
        yield "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )

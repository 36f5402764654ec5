"""Statistics over the seeds of a training, and the tables of headline numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from costl.metrics.paper_table import mean_cell
from costl.pipeline.formats.table import table

Numbers = Mapping[str, float]  # the headline numbers of one run on one split, in percent
BySplit = Mapping[str, Sequence[Numbers]]  # for each split the numbers of every seed

COLUMNS = {
    "R1@0.5": "MR-full-R1@0.5",
    "R1@0.7": "MR-full-R1@0.7",
    "mAP": "MR-full-mAP",
    "HIT@1": "HL-min-VeryGood-Hit1",
}
# The 97.5 % quantile of Student's t by degrees of freedom, for the 95 % interval of a mean over few seeds.
_STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def is_own_result(content: bytes) -> bool:
    """Whether a file begins as results.json of a quickstart and ablation.json do."""
    return content.startswith(b'{\n  "rows": {\n')


@dataclass(frozen=True)
class Ablation:
    """The result of `ablate`: the numbers of the `references` (one entry, without a seed) and of the `variants`.

    The first variant is the full model. `changes` are the overrides of each variant.
    """

    folder: Path
    references: Mapping[str, BySplit]
    variants: Mapping[str, BySplit]
    changes: Mapping[str, Sequence[str]]
    notes: Sequence[str] = ()
    exit_code = 0

    def differences(self) -> dict[str, BySplit]:
        """The numbers of each other variant minus those of the full model with the same seed."""
        full, *others = self.variants
        return {
            name: {
                split: list(map(_difference, rows, self.variants[full][split]))
                for split, rows in self.variants[name].items()
            }
            for name in others
        }

    def lines(self) -> list[str]:
        """For each split a table of means, then for each split a table of differences."""
        lines = ["Mean ± standard deviation over the seeds", "", *score_tables({**self.references, **self.variants})]
        if len(self.variants) > 1:
            lines += ["", "Variant minus full model, paired by seed: mean ± standard deviation [95 % interval]", ""]
            lines += score_tables(self.differences(), difference_cell)
        return lines

    def markdown(self) -> str:
        """The tables, the overrides of each variant and the notes, as a Markdown document."""
        changes = [f"- {name}: `{'`, `'.join(overrides)}`" for name, overrides in self.changes.items() if overrides]
        return "\n".join(["# Ablation", "", *self.lines(), "", "Changes of each variant:", "", *changes, "", *self.notes])

    def data(self) -> dict[str, Any]:
        """The numbers of every seed, their statistics, and the statistics of the differences to the full model."""
        rows: dict[str, dict[str, Any]] = {}
        for name, scores in (*self.references.items(), *self.variants.items()):
            rows[name] = {"changes": self.changes.get(name, ()), "by_seed": scores, "statistics": _by_split(scores)}
        for name, scores in self.differences().items():
            rows[name]["difference"] = _by_split(scores)
        return {"rows": rows, "notes": self.notes}

    def messages(self) -> list[str]:
        """The notes, and the folder of the runs."""
        return [*self.notes, f"Runs, every number and the tables: {self.folder}/"]


def difference_cell(values: Sequence[float]) -> str:
    """Mean, standard deviation and 95 % interval of differences as text, or one difference alone."""
    mean = fmean(values)
    if len(values) == 1:
        return f"{mean:+.1f}"
    half = half_interval(values)
    return f"{mean:+.1f} ± {stdev(values):.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def score_tables(rows: Mapping[str, BySplit], cell: Callable[[Sequence[float]], str] = mean_cell) -> list[str]:
    """For each split a Markdown table with a row for each method and a column for each headline number.

    `cell` turns the values of all seeds into text. The columns are those of COLUMNS that the labels of the split give, or
    all numbers if they give none of these.
    """
    lines: list[str] = []
    for split, (numbers, *_) in next(iter(rows.values())).items():
        keys = {short: key for short, key in COLUMNS.items() if key in numbers} or {key: key for key in numbers}
        cells = [
            [name, *(cell([row[key] for row in scores[split]]) for key in keys.values())] for name, scores in rows.items()
        ]
        lines += [*([""] if lines else []), *table([split, *keys], cells)]
    return lines


def statistics(rows: Sequence[Numbers]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and half the 95 % interval of every number over the seeds; for one seed the mean alone."""
    functions: dict[str, Callable[[Sequence[float]], float]] = {"mean": fmean}
    if len(rows) > 1:
        functions |= {"deviation": stdev, "half": half_interval}
    return {
        name: {key: function([row[key] for row in rows]) for key in rows[0]} for name, function in functions.items()
    }


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean by Student's t. Needs two values or more."""
    degrees_of_freedom = len(values) - 1
    t = _STUDENT_T[degrees_of_freedom - 1] if degrees_of_freedom <= len(_STUDENT_T) else 1.96
    return t * stdev(values) / math.sqrt(len(values))


def _by_split(scores: BySplit) -> dict[str, Any]:
    return {split: statistics(rows) for split, rows in scores.items()}


def _difference(numbers: Numbers, full: Numbers) -> Numbers:
    return {key: value - full[key] for key, value in numbers.items()}

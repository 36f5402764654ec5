"""The result of a reproduction: the paper's table with ours next to published rows, as text and as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from costl.experiments.tables import statistics
from costl.metrics.paper_table import mean_cell, paper_columns
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.table import LATEX, latex_table, table
from costl.reproduce.published import published_rows
from costl.reproduce.scores import Scores

RESULTS = "results.json"
_TABLES = {"md": "table.md", "latex": "table.tex"}
_CSV = "table.csv"


@dataclass(frozen=True)
class Reproduction:
    """`scores` by the way in which the checkpoint was selected, and what the table says about them.

    `features` and `methods` are texts for the table and below it. `official`: scored by the rules of the published
    evaluator. `qids` of the test queries, in the order of the values. `unanswered` counts the queries without a prediction.
    `notes` are for the terminal alone. `exit_code` is 1 if queries are unanswered.
    """

    folder: Path
    benchmark: str
    title: str
    features: str
    scores: Mapping[str, Scores]
    qids: Sequence[int | str]
    official: bool
    unanswered: int
    methods: str
    notes: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 1 if self.unanswered else 0

    def lines(self) -> list[str]:
        """The table in Markdown, the notes about its rows, and the methods."""
        notes = [f"- {note}" for note in self._notes()]
        return [*self.paper_table("md"), "", *notes, "", self.methods]

    def paper_table(self, style: str) -> list[str]:
        """The table alone, in Markdown ("md") or "latex"."""
        header = ["Method", "Features", "Year", *self._columns(), "Source"]
        return (latex_table if style == "latex" else table)(header, [*self._published_cells(), *self._own_cells()])

    def data(self) -> dict[str, Any]:
        """The numbers of every seed, their statistics and intervals, and the methods."""
        selections = {
            name: {**statistics(scores.by_seed), "intervals": dict(scores.intervals), "by_seed": list(scores.by_seed)}
            for name, scores in self.scores.items()
        }
        names = ("benchmark", "title", "features", "official", "unanswered", "methods")
        about = {name: getattr(self, name) for name in names}
        return {**about, "queries": len(self.qids), "selections": selections}

    def messages(self) -> list[str]:
        """The notes, and where the files are."""
        names = ", ".join([*_TABLES.values(), _CSV, RESULTS])
        return [*self.notes, f"{names} and the runs: {self.folder}/"]

    def write(self) -> None:
        """Writes the tables and results.json into the folder. The same numbers give the same bytes."""
        first = next(iter(self.scores.values()))
        values = {name: [None if np.isnan(value) else value for value in array] for name, array in first.values.items()}
        per_query = {"qid": list(self.qids), "domain": list(first.domains), "values": values}
        tex = [*(f"% {note}" for note in self._notes()), *self.paper_table("latex"), "", _latex(self.methods)]
        contents = {
            _TABLES["md"]: _text([f"# {self.title}", "", *self.lines()]),
            _TABLES["latex"]: _text(tex),
            _CSV: self._csv(),
            RESULTS: json.dumps(self.data() | {"per_query": per_query}, indent=1) + "\n",
        }
        for name, content in contents.items():
            publish(self.folder / name, content.encode())

    def _columns(self) -> Mapping[str, str]:
        first = next(iter(self.scores.values()))
        return paper_columns(self.benchmark, first.by_seed[0])

    def _published_cells(self) -> list[list[str]]:
        cells = []
        for row in published_rows(self.benchmark):
            numbers = [row.numbers.get(name, "-") for name in self._columns()]
            cells.append([row.method, row.features, row.year or "-", *numbers, row.source])
        return cells

    def _own_cells(self) -> list[list[str]]:
        cells = []
        for name, scores in self.scores.items():
            keys = self._columns().values()
            means = [mean_cell([numbers[key] for numbers in scores.by_seed], digits=2) for key in keys]
            cells.append([_own_name(name, scores), self.features, "-", *means, "this run"])
            intervals = [_interval(scores.intervals.get(key)) for key in keys]
            cells.append(["95 % interval over queries", "", "", *intervals, ""])
        return cells

    def _notes(self) -> list[str]:
        count = f"{self.unanswered} of {len(self.qids)} test queries are unanswered, without features of their videos: "
        missing = [f"{count}each counts 0."] if self.unanswered else []
        rows = published_rows(self.benchmark)
        source = "Published numbers are those of the source in their row. Compare rows with the same features."
        if not rows:
            source = f"Published rows of {self.title} are missing: no source of them is known here."
        remarks = [f"{row.method}: {row.note}." for row in rows if row.note]
        return [*missing, _rules(official=self.official), source, *remarks]

    def _csv(self) -> str:
        columns = self._columns()
        header = ["method", "features", "year", "source", "note"]
        header += [f"{name}{part}" for name in columns for part in ("", " deviation", " low", " high")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for row in published_rows(self.benchmark):
            about = [row.method, row.features, row.year, row.source, row.note]
            writer.writerow(about + [cell for name in columns for cell in (row.numbers.get(name, ""), "", "", "")])
        for name, scores in self.scores.items():
            about = [_own_name(name, scores), self.features, "", "this run", ""]
            writer.writerow(about + [cell for key in columns.values() for cell in _own_numbers(scores, key)])
        return text.getvalue()


def _own_name(selection: str, scores: Scores) -> str:
    seeds = len(scores.by_seed)
    return f"CoSTL, {selection}, {seeds} seed{'s' if seeds > 1 else ''}"


def _own_numbers(scores: Scores, key: str) -> list[str]:
    values = [numbers[key] for numbers in scores.by_seed]
    interval = scores.intervals.get(key)
    spread = f"{stdev(values):.4f}" if len(values) > 1 else ""
    return [f"{fmean(values):.4f}", spread, *(f"{end:.4f}" for end in interval or ())] + ([] if interval else ["", ""])


def _interval(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.1f} - {interval[1]:.1f}" if interval else "-"


def _rules(*, official: bool) -> str:
    if official:
        return "Scored by the rules of the published evaluator."
    return "Scored by strict rules: the published evaluator stops where a query has no answer."


def _latex(text: str) -> str:
    return text.translate(str.maketrans(LATEX))


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"

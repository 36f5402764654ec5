"""The curves of a training and its best epoch, read from the metrics.jsonl and the summary.json of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.formats.strict_json import json_lines, read_json
from costl.plots.pages import curve_points


@dataclass(frozen=True)
class Curve:
    """A number by epoch. `css` is the class that gives the curve its colour: `guess` for metrics, `truth` for losses."""

    title: str
    css: str
    values: dict[int, float]

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points (epoch, height) of an SVG."""
        return curve_points(list(self.values), list(self.values.values()))


def read_curves(path: Path, select_on: str) -> tuple[list[Curve], list[str]]:
    """The curves of metrics.jsonl, with the metrics of the split `select_on`, and a note if rows cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return [], [f"{path}: cannot be read, so the report has no training curves."]
    curves: dict[str, Curve] = {}
    damaged = []
    for number, line in json_lines(text):
        try:
            row = read_json(line)
            epoch = int(row["epoch"])
            numbers = _numbers(row, select_on)
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged.append(str(number))
            continue
        for (title, css), value in numbers.items():
            curves.setdefault(title, Curve(title, css, {})).values[epoch] = value
    if not damaged:
        return list(curves.values()), []
    which = f"line{'s' if len(damaged) > 1 else ''} {', '.join(damaged[:5])}"
    note = f"{path.name}: {which} cannot be read, so the training curves lack {len(damaged)} epochs."
    return list(curves.values()), [note]


def read_best_epoch(path: Path) -> int | None:
    """The epoch of the run's weights in summary.json; None for an unfinished run, which has no such file."""
    try:
        return int(read_json(path.read_text(encoding="utf-8"))["best_epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _numbers(row: Mapping[str, Any], select_on: str) -> dict[tuple[str, str], float]:
    """The numbers of an epoch by title and class. Raises ValueError or TypeError for a value that is not a number."""
    numbers = {(name, "guess"): float(value) for name, value in row.get(select_on, {}).items()}
    numbers |= {(f"{name} loss", "truth"): float(value) for name, value in row.get("losses", {}).items()}
    if "learning_rate" in row:
        numbers["learning rate", "plain"] = float(row["learning_rate"])
    return numbers

"""The curves of a training: losses, learning rate, validation."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.plots.headless import load_matplotlib
from costl.plots.style import GREY, PREDICTION, TRUTH, WIDTH, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(
    path: Path, rows: Sequence[Mapping[str, Any]], *, select: str, best_epoch: int, title: str = ""
) -> None:
    """Draws training curves by epoch: every loss, the learning rate, and the validation metrics in percent.

    `rows` are the rows of metrics.jsonl, with metrics of `val`, or of `test` if the run selected its epoch on the test
    split. `select` is the metric that selected `best_epoch`; its curve is highlighted. Raises UsageError if there is no
    row, CostlError if the file cannot be written.
    """
    if not rows:
        raise UsageError(f"{path}: no epoch to draw, expected at least one.")
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 6.4), dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(printable(title), size=13, weight="bold", parse_math=False)
    axes = figure.subplot_mosaic("LV;RV", height_ratios=(3, 1))
    epochs = [row["epoch"] for row in rows]
    for letter, name in (("L", "losses"), ("R", "learning rate"), ("V", "validation, %")):
        _prepare_curves(axes[letter], name, epochs)
    _draw_losses(axes["L"], rows, epochs)
    marker = "." if len(rows) == 1 else ""
    axes["R"].plot(epochs, [row["learning_rate"] for row in rows], color=TRUTH, marker=marker)
    axes["R"].set_ylim(bottom=0)
    _draw_validation(axes["V"], rows, select=select, best_epoch=best_epoch)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    publish(path, image.getvalue())


def _prepare_curves(axes: Axes, name: str, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(name, size=10, loc="left", color=GREY)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.tick_params(length=0, labelsize=8, labelcolor=GREY)
    for side in axes.spines.values():
        side.set_color("#d1d5db")


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: Sequence[int]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", length=0, labelsize=8, labelcolor=GREY)
    for number, name in enumerate(rows[0]["losses"]):
        values = [row["losses"].get(name, math.nan) for row in rows]
        if any(value > 0 for value in values):
            axes.plot(epochs, values, label=name, color=f"C{number}", marker="." if len(rows) == 1 else "")
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _draw_validation(axes: Axes, rows: Sequence[Mapping[str, Any]], *, select: str, best_epoch: int) -> None:
    split = "test" if any("test" in row for row in rows) else "val"
    measured = [row for row in rows if split in row]
    if not measured:
        axes.text(0.5, 0.5, "no split 'val'", transform=axes.transAxes, ha="center", color=GREY)
        return
    epochs = [row["epoch"] for row in measured]
    style = ".-" if len(measured) == 1 else "-"
    for name in measured[0][split]:
        if name != select:
            values = [row[split].get(name, math.nan) for row in measured]
            axes.plot(epochs, values, style, color="#c4c9d1", linewidth=0.9)
    selected = {row["epoch"]: row[split].get(select, math.nan) for row in measured}
    axes.plot(list(selected), list(selected.values()), style, color=PREDICTION, linewidth=2.2)
    if best_epoch in selected:
        axes.plot(best_epoch, selected[best_epoch], "o", color=PREDICTION, markersize=8)
        axes.axvline(best_epoch, color=PREDICTION, linewidth=0.8, linestyle=":")
        split_name = "validation" if split == "val" else "legacy: test"
        title = f"{split_name}, %: {select} {selected[best_epoch]:.1f} at the best epoch, {best_epoch}"
        axes.set_title(title, size=10, loc="left", color=GREY)
    axes.set_ylim(bottom=0)

"""The curves of a training: losses, learning rate, validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.formats.files import publish
from costl.plots.headless import load_matplotlib
from costl.plots.style import GREY, PREDICTION, STYLE, TICKS, TRUTH, WIDTH, printable, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(
    path: Path, rows: Sequence[Mapping[str, Any]], *, select: str, best_epoch: int, title: str = ""
) -> None:
    """Draws training curves by epoch: every loss, the learning rate, and the validation metrics in percent.

    `rows` are the rows of metrics.jsonl, at least one, with metrics of `val`, or of `test` if the run selected its epoch on
    the test split. `select` is the metric that selected `best_epoch`; its curve is highlighted. Raises CostlError if the
    file cannot be written.
    """
    publish(path, _to_png(rows, select, best_epoch, title))


def _to_png(rows: Sequence[Mapping[str, Any]], select: str, best_epoch: int, title: str) -> bytes:
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
        figure.suptitle(printable(title), size=13, weight="bold", parse_math=False)
        axes = figure.subplot_mosaic("LV;RV", height_ratios=(3, 1))
        epochs = [row["epoch"] for row in rows]
        for letter, name in (("L", "losses"), ("R", "learning rate"), ("V", "validation, %")):
            _prepare_curves(axes[letter], name, epochs)
        _draw_losses(axes["L"], rows, epochs)
        axes["R"].plot(epochs, [row["learning_rate"] for row in rows], _line(rows), color=TRUTH)
        axes["R"].set_ylim(bottom=0)
        _draw_validation(axes["V"], rows, select=select, best_epoch=best_epoch)
        return to_png(figure)


def _prepare_curves(axes: Axes, name: str, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(name, size=10, loc="left", color=GREY)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(which="both", **TICKS)


def _line(rows: Sequence[object]) -> str:
    """matplotlib's format of a line. A line through one point alone would be invisible."""
    return ".-" if len(rows) == 1 else "-"


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: Sequence[int]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    for number, name in enumerate(rows[0]["losses"]):
        values = [row["losses"].get(name, math.nan) for row in rows]
        if any(value > 0 for value in values):
            axes.plot(epochs, values, _line(rows), label=name, color=f"C{number}")
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _draw_validation(axes: Axes, rows: Sequence[Mapping[str, Any]], *, select: str, best_epoch: int) -> None:
    split = "test" if any("test" in row for row in rows) else "val"
    scores = {row["epoch"]: row[split] for row in rows if split in row}
    if not scores:
        axes.text(0.5, 0.5, "no split 'val'", transform=axes.transAxes, ha="center", color=GREY)
        return
    style = _line(list(scores))
    for name in next(iter(scores.values())):
        values = [metrics.get(name, math.nan) for metrics in scores.values()]
        if name == select:
            axes.plot(list(scores), values, style, color=PREDICTION, linewidth=2.2, zorder=3)
        else:
            axes.plot(list(scores), values, style, color="#c4c9d1", linewidth=0.9)
    if best_epoch in scores:
        best = scores[best_epoch].get(select, math.nan)
        axes.plot(best_epoch, best, "o", color=PREDICTION, markersize=8)
        axes.axvline(best_epoch, color=PREDICTION, linewidth=0.8, linestyle=":")
        split_name = "validation" if split == "val" else "legacy: test"
        title = f"{split_name}, %: {select} {best:.1f} at the best epoch, {best_epoch}"
        axes.set_title(title, size=10, loc="left", color=GREY)
    axes.set_ylim(bottom=0)

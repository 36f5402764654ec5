"""Pictures of a run: predictions beside the truth, and the curves of training."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.compute import interval_iou
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.plots.headless import load_matplotlib
from costl.plots.text import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DRAWN = 40
MOMENTS_DRAWN = 3

# The picture, in inches: everything has its place by arithmetic, so that nothing can overlap.
WIDTH, LEFT, RIGHT = 10.0, 0.75, 1.15
PICTURE = 2.0  # what a picture beside the panels adds to the width
HEADER, LINE, ROW, CURVE, TICKS, GAP = 0.6, 0.21, 0.22, 0.62, 0.25, 0.22
LINE_CHARACTERS = 92
TRUTH, GUESS, QUIET = "#2a9d8f", "#e76f51", "#6b7280"
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def draw_predictions(
    path: Path,
    items: Sequence[tuple[Query, Prediction]],
    *,
    title: str = "",
    clip_s: float = 2.0,
    pictures: Mapping[int | str, np.ndarray] | None = None,
) -> None:
    """A PNG with a panel per query: its text, the true windows, the best moments with score and IoU, both saliencies.

    The predicted saliency is scaled to its own range in the video; the true one is the mean over the annotators.
    Ratings are for clips of `clip_s` seconds, or for the query's own rated windows. `pictures` [h w 3] of some queries, by
    qid, are put beside them. The first forty items are drawn. Raises UsageError without any item and CostlError when the
    file cannot be written.
    """
    if not items:
        raise UsageError(f"{path}: no prediction to draw, expected at least one.")
    # Imported here, as a picture is wanted now and then; Figure and Agg without pyplot, which keeps global state.
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = pictures or {}
    panels = [(query, answer, _wrapped(query.query)) for query, answer in items[:MOST_DRAWN]]
    height = HEADER + sum(_panel_height(*panel) for panel in panels)
    figure = Figure(figsize=(WIDTH + (PICTURE if pictures else 0), height), dpi=130, facecolor="white")
    _draw_header(figure, title)
    top = HEADER
    for query, answer, lines in panels:
        _draw_panel(figure, top, query, answer, lines, clip_s)
        if query.qid in pictures:
            _draw_picture(figure, top, _panel_height(query, answer, lines) - GAP, pictures[query.qid])
        top += _panel_height(query, answer, lines)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    publish(path, image.getvalue())


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]], *, select: str, kept: int, title: str = "") -> None:
    """A PNG of training: every loss, the learning rate, and the validation numbers in percent, epoch by epoch.

    `rows` as metrics.jsonl holds them, with the numbers of `val`, or of `test` where the run looked at that; `select` the
    number by which epoch `kept` was chosen, drawn strongest and marked.
    Raises UsageError without a row, CostlError when the file cannot be written.
    """
    if not rows:
        raise UsageError(f"{path}: no epoch to draw, expected at least one.")
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 6.4), dpi=130, facecolor="white", layout="constrained")
    figure.suptitle(_printable(title), size=13, weight="bold", parse_math=False)
    axes = figure.subplot_mosaic("LV;RV", height_ratios=(3, 1))
    epochs = [row["epoch"] for row in rows]
    for letter, name in (("L", "losses"), ("R", "learning rate"), ("V", "validation, %")):
        _prepare_curves(axes[letter], name, epochs)
    _draw_losses(axes["L"], rows, epochs)
    dot = "." if len(rows) == 1 else ""
    axes["R"].plot(epochs, [row["learning_rate"] for row in rows], color=TRUTH, marker=dot)
    axes["R"].set_ylim(bottom=0)
    _draw_validation(axes["V"], rows, select=select, kept=kept)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    publish(path, image.getvalue())


def _prepare_curves(axes: Axes, name: str, epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(name, size=10, loc="left", color=QUIET)
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    for side in axes.spines.values():
        side.set_color("#d1d5db")


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: Sequence[int]) -> None:
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:g}")
    axes.tick_params(which="minor", length=0, labelsize=8, labelcolor=QUIET)
    for number, name in enumerate(rows[0]["losses"]):
        values = [row["losses"].get(name, math.nan) for row in rows]
        if any(value > 0 for value in values):
            axes.plot(epochs, values, label=name, color=f"C{number}", marker="." if len(rows) == 1 else "")
    axes.legend(fontsize=8, frameon=False, ncols=2)


def _draw_validation(axes: Axes, rows: Sequence[Mapping[str, Any]], *, select: str, kept: int) -> None:
    split = "test" if any("test" in row for row in rows) else "val"
    measured = [row for row in rows if split in row]
    if not measured:
        axes.text(0.5, 0.5, "no split 'val'", transform=axes.transAxes, ha="center", color=QUIET)
        return
    epochs, dot = [row["epoch"] for row in measured], "." if len(measured) == 1 else ""
    for name in measured[0][split]:
        if name != select:
            axes.plot(
                epochs, [row[split].get(name, math.nan) for row in measured], dot + "-", color="#c4c9d1", linewidth=0.9
            )
    chosen = {row["epoch"]: row[split].get(select, math.nan) for row in measured}
    axes.plot(list(chosen), list(chosen.values()), dot + "-", color=GUESS, linewidth=2.2)
    if kept in chosen:
        axes.plot(kept, chosen[kept], "o", color=GUESS, markersize=8)
        axes.axvline(kept, color=GUESS, linewidth=0.8, linestyle=":")
        where = "validation" if split == "val" else "legacy: test"
        title = f"{where}, %: {select} {chosen[kept]:.1f} at epoch {kept}, the one kept"
        axes.set_title(title, size=10, loc="left", color=QUIET)
    axes.set_ylim(bottom=0)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(_printable(text), LINE_CHARACTERS, max_lines=3, placeholder=" ...") or [""]


def _printable(text: str) -> str:
    """The text with a box for what the font cannot draw; the drawing would warn about each such character."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(mark if font.get_char_index(ord(mark)) else "\u25a1" for mark in " ".join(text.split()))


def _panel_height(query: Query, answer: Prediction, lines: Sequence[str]) -> float:
    curve = CURVE if query.clip_ids or answer.saliency else 0.0
    return LINE * (len(lines) + 1) + ROW * len(_rows(query, answer)) + curve + TICKS + GAP


def _rows(query: Query, answer: Prediction) -> list[tuple[str, tuple[tuple[float, ...], ...]]]:
    """The bars of a panel from top to bottom: the truth in one row, each moment in its own."""
    best = sorted(answer.windows, key=lambda moment: -moment[2])[:MOMENTS_DRAWN]
    truth = [("truth", query.windows)] if query.windows else []
    return [*truth, *((f"moment {rank}", (moment,)) for rank, moment in enumerate(best, start=1))]


def _draw_header(figure: Figure, title: str) -> None:
    from matplotlib.patches import Patch

    height = figure.get_figheight()
    y = 1 - 0.3 / height
    figure.text(
        LEFT / figure.get_figwidth(), y, _printable(title), size=13, weight="bold", va="center", parse_math=False
    )
    handles = [Patch(color=TRUTH, label="truth"), Patch(color=GUESS, label="prediction")]
    place = ((WIDTH - RIGHT) / figure.get_figwidth(), y)
    figure.legend(handles=handles, loc="center right", bbox_to_anchor=place, ncols=2, frameon=False, fontsize=9)


def _draw_panel(
    figure: Figure, top: float, query: Query, answer: Prediction, lines: Sequence[str], clip_s: float
) -> None:
    page = figure.get_figheight()
    for line in lines:
        figure.text(
            LEFT / figure.get_figwidth(), 1 - (top + LINE / 2) / page, line, size=10.5, va="center", parse_math=False
        )
        top += LINE
    # Where only clips are rated, as in TVSum, no moment is expected.
    silent = "" if answer.windows or (answer.saliency and not query.windows) else " · no moment predicted"
    about = _printable(f"{query.vid} · {clock(query.duration_s)}{silent}")
    figure.text(
        LEFT / figure.get_figwidth(),
        1 - (top + LINE / 2) / page,
        about,
        size=8,
        color=QUIET,
        va="center",
        parse_math=False,
    )
    top += LINE
    rows = _rows(query, answer)
    has_curve = bool(query.clip_ids or answer.saliency)
    if rows:
        bars = _axes(figure, top, ROW * len(rows), query.duration_s, ticks=not has_curve)
        _draw_bars(bars, rows, query)
    if has_curve:
        _draw_curves(_axes(figure, top + ROW * len(rows), CURVE, query.duration_s, ticks=True), query, answer, clip_s)


def _draw_picture(figure: Figure, top: float, height: float, picture: np.ndarray) -> None:
    page, wide = figure.get_figheight(), figure.get_figwidth()
    place = (WIDTH / wide, 1 - (top + height) / page, (PICTURE - 0.2) / wide, height / page)
    axes = figure.add_axes(place, anchor="NW")
    axes.imshow(picture)
    axes.set_axis_off()


def _axes(figure: Figure, top: float, height: float, duration_s: float, *, ticks: bool) -> Axes:
    page = figure.get_figheight()
    axes = figure.add_axes(
        (
            LEFT / figure.get_figwidth(),
            1 - (top + height) / page,
            (WIDTH - LEFT - RIGHT) / figure.get_figwidth(),
            height / page,
        ),
        xlim=(0, duration_s),
    )
    step = next((s for s in TICK_STEPS_S if duration_s / s <= 10), duration_s)
    at = np.arange(0, duration_s + 1e-6, step)
    axes.set_xticks(at, [clock(second) for second in at] if ticks else [""] * len(at))
    axes.tick_params(axis="both", length=0, labelsize=8, labelcolor=QUIET)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color("#d1d5db")
    return axes


def _draw_bars(axes: Axes, rows: Sequence[tuple[str, tuple[tuple[float, ...], ...]]], query: Query) -> None:
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for y, (name, windows) in enumerate(rows):
        spans = [(window[0], window[1] - window[0]) for window in windows]
        color, strength = (TRUTH, 1.0) if name == "truth" else (GUESS, 1.0 if name == "moment 1" else 0.45)
        axes.broken_barh(spans, (y - 0.34, 0.68), color=color, alpha=strength, linewidth=0)
        if name != "truth":
            _say_beside(axes, y, f"{windows[0][2]:.2f}", column=0)
            if query.windows:
                iou = interval_iou(np.array(windows[0][:2]), np.array(query.windows))
                _say_beside(axes, y, f"{np.nanmax(iou):.2f}", column=1)
    if rows[-1][0] != "truth":
        _say_beside(axes, -1, "score", column=0)
        _say_beside(axes, -1, "IoU" if query.windows else "", column=1)


def _say_beside(axes: Axes, y: float, text: str, *, column: int) -> None:
    axes.annotate(
        text,
        xy=(1, y),
        xycoords=("axes fraction", "data"),
        xytext=(32 + 34 * column, 0),  # right of the frame, where no bar can be
        textcoords="offset points",
        size=8,
        color=QUIET if y < 0 else "black",
        ha="right",
        va="center",
    )


def _draw_curves(axes: Axes, query: Query, answer: Prediction, clip_s: float) -> None:
    axes.set_ylim(-0.06, 1.12)
    axes.set_yticks([0.5], ["saliency"])
    if query.clip_ids:
        _draw_ratings(axes, query, clip_s)
    if answer.saliency:
        scores = np.array(answer.saliency)
        scaled = (scores - scores.min()) / (np.ptp(scores) or 1.0)
        centres = (np.arange(len(scores)) + 0.5) * query.duration_s / len(scores)
        if len(query.rated_s) == len(scores):
            centres = np.mean(query.rated_s, axis=1)
        order = np.argsort(centres, kind="stable")
        axes.plot(centres[order], scaled[order], color=GUESS, linewidth=1.6)


def _draw_ratings(axes: Axes, query: Query, clip_s: float) -> None:
    """Steps as high as the mean rating; where rated windows overlap, the mean over those."""
    windows = np.array(query.rated_s) if query.rated_s else _clips(max(query.clip_ids) + 1, clip_s)
    windows = np.minimum(windows, query.duration_s)
    means = np.zeros(len(windows))
    means[list(query.clip_ids)] = np.mean(query.saliency, axis=1)
    edges = np.unique(windows)
    if len(edges) < 2:
        return
    middles = (edges[:-1] + edges[1:]) / 2
    inside = (windows[:, :1] <= middles) & (middles < windows[:, 1:])
    heights = means @ inside / np.maximum(1, inside.sum(axis=0))
    axes.stairs(heights / max(4.0, heights.max()), edges, fill=True, color=TRUTH, alpha=0.3)


def _clips(count: int, clip_s: float) -> np.ndarray:
    return np.arange(count)[:, None] * clip_s + np.array([0.0, clip_s])

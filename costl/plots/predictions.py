"""Draws the predictions of a run next to the truth, as a PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.metrics.moments import interval_iou
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.plots.headless import load_matplotlib
from costl.plots.style import GREY, PREDICTION, TRUTH, WIDTH, printable
from costl.plots.terminal_text import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DRAWN = 40
MOMENTS_DRAWN = 3

# The layout in inches. All positions are computed from it, so that nothing overlaps.
LEFT, RIGHT = 0.75, 1.15
PICTURE = 2.0  # added to the width for a picture next to each panel
HEADER, LINE, ROW, CURVE, TICKS, GAP = 0.6, 0.21, 0.22, 0.62, 0.25, 0.22
LINE_CHARACTERS = 92
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def draw_predictions(
    path: Path,
    items: Sequence[tuple[Query, Prediction]],
    *,
    title: str = "",
    clip_s: float = 2.0,
    pictures: Mapping[int | str, np.ndarray] | None = None,
) -> None:
    """Draws a panel per query: its text, the true windows, the best moments with score and IoU, and both saliencies.

    The predicted saliency is scaled to its own range in the video. The true saliency is the mean over the annotators.
    Ratings are for clips of `clip_s` seconds, or for the query's own rated windows. `pictures` (uint8 [height width 3], by
    qid) are drawn next to the panels. At most forty items are drawn. Raises UsageError if there is no item, CostlError if
    the file cannot be written.
    """
    if not items:
        raise UsageError(f"{path}: no prediction to draw, expected at least one.")
    # Imported here, because drawing is optional. Figure and Agg are used directly, because pyplot has global state.
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


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), LINE_CHARACTERS, max_lines=3, placeholder=" ...") or [""]


def _panel_height(query: Query, answer: Prediction, lines: Sequence[str]) -> float:
    curve = CURVE if query.clip_ids or answer.saliency else 0.0
    return LINE * (len(lines) + 1) + ROW * len(_rows(query, answer)) + curve + TICKS + GAP


def _rows(query: Query, answer: Prediction) -> list[tuple[str, tuple[tuple[float, ...], ...]]]:
    """The rows of bars in a panel, from top to bottom: one row for the truth, and one for each moment."""
    best = sorted(answer.windows, key=lambda moment: -moment[2])[:MOMENTS_DRAWN]
    truth = [("truth", query.windows)] if query.windows else []
    return [*truth, *((f"moment {rank}", (moment,)) for rank, moment in enumerate(best, start=1))]


def _draw_header(figure: Figure, title: str) -> None:
    from matplotlib.patches import Patch

    height = figure.get_figheight()
    y = 1 - 0.3 / height
    figure.text(
        LEFT / figure.get_figwidth(), y, printable(title), size=13, weight="bold", va="center", parse_math=False
    )
    handles = [Patch(color=TRUTH, label="truth"), Patch(color=PREDICTION, label="prediction")]
    anchor = ((WIDTH - RIGHT) / figure.get_figwidth(), y)
    figure.legend(handles=handles, loc="center right", bbox_to_anchor=anchor, ncols=2, frameon=False, fontsize=9)


def _draw_panel(
    figure: Figure, top: float, query: Query, answer: Prediction, lines: Sequence[str], clip_s: float
) -> None:
    for line in lines:
        _draw_text(figure, top, line, size=10.5, color="black")
        top += LINE
    # If only clips are rated, as in TVSum, no moment is expected.
    missing = "" if answer.windows or (answer.saliency and not query.windows) else " · no moment predicted"
    _draw_text(figure, top, printable(f"{query.vid} · {clock(query.duration_s)}{missing}"), size=8, color=GREY)
    top += LINE
    rows = _rows(query, answer)
    has_curve = bool(query.clip_ids or answer.saliency)
    if rows:
        bars = _axes(figure, top, ROW * len(rows), query.duration_s, ticks=not has_curve)
        _draw_bars(bars, rows, query)
    if has_curve:
        _draw_curves(_axes(figure, top + ROW * len(rows), CURVE, query.duration_s, ticks=True), query, answer, clip_s)


def _draw_text(figure: Figure, top: float, text: str, *, size: float, color: str) -> None:
    y = 1 - (top + LINE / 2) / figure.get_figheight()
    figure.text(LEFT / figure.get_figwidth(), y, text, size=size, color=color, va="center", parse_math=False)


def _draw_picture(figure: Figure, top: float, height: float, picture: np.ndarray) -> None:
    page_height = figure.get_figheight()
    page_width = figure.get_figwidth()
    bottom = 1 - (top + height) / page_height
    box = (WIDTH / page_width, bottom, (PICTURE - 0.2) / page_width, height / page_height)
    axes = figure.add_axes(box, anchor="NW")
    axes.imshow(picture)
    axes.set_axis_off()


def _axes(figure: Figure, top: float, height: float, duration_s: float, *, ticks: bool) -> Axes:
    page_height = figure.get_figheight()
    page_width = figure.get_figwidth()
    bottom = 1 - (top + height) / page_height
    box = (LEFT / page_width, bottom, (WIDTH - LEFT - RIGHT) / page_width, height / page_height)
    axes = figure.add_axes(box, xlim=(0, duration_s))
    step_s = next((step for step in TICK_STEPS_S if duration_s / step <= 10), duration_s)
    ticks_s = np.arange(0, duration_s + 1e-6, step_s)
    axes.set_xticks(ticks_s, [clock(second) for second in ticks_s] if ticks else [""] * len(ticks_s))
    axes.tick_params(axis="both", length=0, labelsize=8, labelcolor=GREY)
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
        color = TRUTH if name == "truth" else PREDICTION
        opacity = 1.0 if name in ("truth", "moment 1") else 0.45
        axes.broken_barh(spans, (y - 0.34, 0.68), color=color, alpha=opacity, linewidth=0)
        if name != "truth":
            _write_in_column(axes, y, f"{windows[0][2]:.2f}", column=0)
            if query.windows:
                iou = interval_iou(np.array(windows[0][:2]), np.array(query.windows))
                _write_in_column(axes, y, f"{np.nanmax(iou):.2f}", column=1)
    if rows[-1][0] != "truth":
        _write_in_column(axes, -1, "score", column=0)
        _write_in_column(axes, -1, "IoU" if query.windows else "", column=1)


def _write_in_column(axes: Axes, y: float, text: str, *, column: int) -> None:
    axes.annotate(
        text,
        xy=(1, y),
        xycoords=("axes fraction", "data"),
        xytext=(32 + 34 * column, 0),  # to the right of the axes
        textcoords="offset points",
        size=8,
        color=GREY if y < 0 else "black",
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
        axes.plot(centres[order], scaled[order], color=PREDICTION, linewidth=1.6)


def _draw_ratings(axes: Axes, query: Query, clip_s: float) -> None:
    """Draws the mean rating as steps. Where rated windows overlap, it draws the mean over them."""
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

"""Predictions and metrics for others to read: submission JSONL, Parquet, JSON and a picture; `tables` has the table."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costl.annotations import Prediction, Query
from costl.files import publish
from costl.metrics import interval_iou
from costl.tables import metrics_table as metrics_table
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DRAWN = 40
MOMENTS_DRAWN = 3

# The picture, in inches: everything has its place by arithmetic, so that nothing can overlap.
WIDTH, LEFT, RIGHT = 10.0, 0.75, 1.15
HEADER, LINE, ROW, CURVE, TICKS, GAP = 0.6, 0.21, 0.22, 0.62, 0.25, 0.22
LINE_CHARACTERS = 92
TRUTH, GUESS, QUIET = "#2a9d8f", "#e76f51", "#6b7280"
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """The submission format of QVHighlights: one JSON object a line. Raises CostlError when it cannot be written."""
    lines = [json.dumps(prediction.to_row(), allow_nan=False) + "\n" for prediction in predictions]
    publish(path, "".join(lines).encode())


def write_parquet(path: Path, predictions: Sequence[Prediction]) -> None:
    """One row a query: qid (int64, or text when one qid is), query, vid, moments (list of start_s, end_s, score),
    saliency (list). Raises CostlError when it cannot be written."""
    # Imported here: a table of numbers needs none of it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = all(isinstance(prediction.qid, int) for prediction in predictions)
    moment = pa.struct([(name, pa.float64()) for name in ("start_s", "end_s", "score")])
    schema = pa.schema(
        [
            ("qid", pa.int64() if whole else pa.string()),
            ("query", pa.string()),
            ("vid", pa.string()),
            ("moments", pa.list_(moment)),
            ("saliency", pa.list_(pa.float64())),
        ]
    )
    rows = [
        {
            "qid": p.qid if whole else str(p.qid),
            "query": p.query,
            "vid": p.vid,
            "moments": [dict(zip(("start_s", "end_s", "score"), window, strict=True)) for window in p.windows],
            "saliency": p.saliency,
        }
        for p in predictions
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    publish(path, sink.getvalue())


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """What `compute_metrics` gave, as JSON. Raises CostlError when it cannot be written."""
    publish(path, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def draw_predictions(
    path: Path, items: Sequence[tuple[Query, Prediction]], *, title: str = "", clip_s: float = 2.0
) -> None:
    """A PNG with a panel per query: its text, the true windows, the best moments with score and IoU, both saliencies.

    The predicted saliency is scaled to its own range in the video; the true one is the mean over the annotators.
    Ratings are for clips of `clip_s` seconds, or for the query's own rated windows. The first forty items are drawn.
    Raises UsageError without any item and CostlError when the file cannot be written.
    """
    if not items:
        raise UsageError(f"{path}: no prediction to draw, expected at least one.")
    # Imported here, as a picture is wanted now and then; Figure and Agg without pyplot, which keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(query, answer, _wrapped(query.query)) for query, answer in items[:MOST_DRAWN]]
    height = HEADER + sum(_panel_height(*panel) for panel in panels)
    figure = Figure(figsize=(WIDTH, height), dpi=130, facecolor="white")
    _draw_header(figure, title)
    top = HEADER
    for query, answer, lines in panels:
        _draw_panel(figure, top, query, answer, lines, clip_s)
        top += _panel_height(query, answer, lines)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    publish(path, image.getvalue())


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
    figure.text(LEFT / WIDTH, y, _printable(title), size=13, weight="bold", va="center", parse_math=False)
    handles = [Patch(color=TRUTH, label="truth"), Patch(color=GUESS, label="prediction")]
    place = (1 - RIGHT / WIDTH, y)
    figure.legend(handles=handles, loc="center right", bbox_to_anchor=place, ncols=2, frameon=False, fontsize=9)


def _draw_panel(
    figure: Figure, top: float, query: Query, answer: Prediction, lines: Sequence[str], clip_s: float
) -> None:
    page = figure.get_figheight()
    for line in lines:
        figure.text(LEFT / WIDTH, 1 - (top + LINE / 2) / page, line, size=10.5, va="center", parse_math=False)
        top += LINE
    # Where only clips are rated, as in TVSum, no moment is expected.
    silent = "" if answer.windows or (answer.saliency and not query.windows) else " · no moment predicted"
    about = _printable(f"{query.vid} · {_clock(query.duration_s)}{silent}")
    figure.text(LEFT / WIDTH, 1 - (top + LINE / 2) / page, about, size=8, color=QUIET, va="center", parse_math=False)
    top += LINE
    rows = _rows(query, answer)
    has_curve = bool(query.clip_ids or answer.saliency)
    if rows:
        bars = _axes(figure, top, ROW * len(rows), query.duration_s, ticks=not has_curve)
        _draw_bars(bars, rows, query)
    if has_curve:
        _draw_curves(_axes(figure, top + ROW * len(rows), CURVE, query.duration_s, ticks=True), query, answer, clip_s)


def _axes(figure: Figure, top: float, height: float, duration_s: float, *, ticks: bool) -> Axes:
    page = figure.get_figheight()
    axes = figure.add_axes(
        (LEFT / WIDTH, 1 - (top + height) / page, (WIDTH - LEFT - RIGHT) / WIDTH, height / page),
        xlim=(0, duration_s),
    )
    step = next((s for s in TICK_STEPS_S if duration_s / s <= 10), duration_s)
    at = np.arange(0, duration_s + 1e-6, step)
    axes.set_xticks(at, [_clock(second) for second in at] if ticks else [""] * len(at))
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


def _clock(second: float) -> str:
    minutes, seconds = divmod(round(second), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""Draws queries as panels of a PNG: the text, true and predicted moments over time, and the saliency of every clip."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costl.data.annotations import RATED_CLIP_S, Prediction, Query
from costl.metrics.moments import interval_iou
from costl.pipeline.formats.files import publish
from costl.plots.headless import load_matplotlib
from costl.plots.style import GREY, PREDICTION, STYLE, TICKS, TRUTH, WIDTH, printable, to_png
from costl.plots.terminal_text import clock, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DRAWN = 40

# The layout in inches. All positions are computed from it, so that nothing overlaps.
LEFT, RIGHT = 0.75, 1.15
PICTURE = 2.0  # added to the width for a picture next to each panel
HEADER, LINE, FRAMES, ROW, CURVE, GAP = 0.6, 0.21, 0.62, 0.22, 0.62, 0.47
SCORE, IOU = 1.055, 1.113  # columns of numbers, in widths of the axes
FRAMES_ASPECT = (WIDTH - LEFT - RIGHT) / FRAMES


@dataclass(frozen=True)
class Panel:
    """A query, its prediction and how many of its moments are drawn, with optional images (uint8 [height width 3]).

    `frames` fill the time axis above the moments. `picture` is drawn next to the panel.
    """

    query: Query
    answer: Prediction
    moments: int = 3
    frames: Sequence[np.ndarray] = ()
    picture: np.ndarray | None = None

    @property
    def rows(self) -> list[tuple[str, Sequence[tuple[float, ...]]]]:
        """The rows of bars from top to bottom, each with its name: one row for the truth, and one for each moment."""
        best = sorted(self.answer.windows, key=lambda moment: -moment[2])[: self.moments]
        truth = [("truth", self.query.windows)] if self.query.windows else []
        return [*truth, *((f"moment {rank}", (moment,)) for rank, moment in enumerate(best, start=1))]

    @property
    def has_curve(self) -> bool:
        """Whether a saliency is predicted or annotated."""
        return bool(self.query.clip_ids or self.answer.saliency)

    @property
    def height(self) -> float:
        """The height in inches."""
        lines = len(_wrapped(self.query.query)) + 1
        frames = FRAMES if self.frames else 0
        return LINE * lines + frames + ROW * len(self.rows) + CURVE * self.has_curve + GAP


def draw_predictions(
    path: Path,
    items: Sequence[tuple[Query, Prediction]],
    *,
    title: str,
    pictures: Mapping[int | str, np.ndarray],
) -> None:
    """Writes a PNG with a panel for each query. `pictures` (uint8 [height width 3], by qid) are drawn next to the panels.

    Raises CostlError if the file cannot be written.
    """
    panels = [Panel(query, answer, picture=pictures.get(query.qid)) for query, answer in items]
    publish(path, draw_panels(panels, title=title))


def draw_panels(panels: Sequence[Panel], *, title: str = "") -> bytes:
    """A PNG with the first forty panels, one below the other, under a header if there is a title.

    A panel shows the text of the query, the true windows, the best moments with score and IoU, and both saliencies. The
    predicted saliency is scaled to its own range in the video. The true saliency is the mean over the annotators.
    """
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = panels[:MOST_DRAWN]
    top = HEADER if title else LINE
    width = WIDTH + (PICTURE if any(panel.picture is not None for panel in panels) else 0)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, top + sum(panel.height for panel in panels)))
        if title:
            _draw_header(figure, title)
        for panel in panels:
            _draw_panel(figure, top, panel)
            top += panel.height
        return to_png(figure)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), 92, max_lines=3, placeholder=" ...") or [""]


def _draw_header(figure: Figure, title: str) -> None:
    from matplotlib.patches import Patch

    _draw_text(figure, HEADER / 2, printable(title), size=13, weight="bold")
    handles = [Patch(color=TRUTH, label="truth"), Patch(color=PREDICTION, label="prediction")]
    anchor = ((WIDTH - RIGHT) / figure.get_figwidth(), 1 - HEADER / 2 / figure.get_figheight())
    figure.legend(handles=handles, loc="center right", bbox_to_anchor=anchor, ncols=2, frameon=False, fontsize=9)


def _draw_panel(figure: Figure, top: float, panel: Panel) -> None:
    query = panel.query
    if panel.picture is not None:
        picture_axes = _add_axes(figure, top, panel.height - GAP, left=WIDTH, width=PICTURE - 0.2, anchor="NW")
        picture_axes.imshow(panel.picture)
        picture_axes.set_axis_off()
    for line in _wrapped(query.query):
        _draw_text(figure, top + LINE / 2, line, size=10.5)
        top += LINE
    # If only clips are rated, as in TVSum, no moment is expected.
    missing = "" if panel.answer.windows or (panel.answer.saliency and not query.windows) else " · no moment predicted"
    facts = printable(f"{query.vid} · {clock(query.duration_s)}{missing}")
    _draw_text(figure, top + LINE / 2, facts, size=8, color=GREY)
    top += LINE
    if panel.frames:
        _draw_frames(_time_axes(figure, top, FRAMES, query.duration_s), panel.frames, query.duration_s)
        top += FRAMES
    if panel.rows:
        height = ROW * len(panel.rows)
        _draw_bars(_time_axes(figure, top, height, query.duration_s, labels=not panel.has_curve), panel.rows, query)
        top += height
    if panel.has_curve:
        _draw_curves(_time_axes(figure, top, CURVE, query.duration_s, labels=True), query, panel.answer)


def _draw_text(figure: Figure, middle: float, text: str, **style: Any) -> None:
    """A line of text; `middle` is its distance from the top in inches."""
    y = 1 - middle / figure.get_figheight()
    figure.text(LEFT / figure.get_figwidth(), y, text, va="center", parse_math=False, **style)


def _add_axes(figure: Figure, top: float, height: float, *, left: float, width: float, **options: Any) -> Axes:
    """Axes at a distance from the top and the left, all in inches."""
    page_width, page_height = figure.get_size_inches()
    bottom = 1 - (top + height) / page_height
    return figure.add_axes((left / page_width, bottom, width / page_width, height / page_height), **options)


def _time_axes(figure: Figure, top: float, height: float, duration_s: float, *, labels: bool = False) -> Axes:
    axes = _add_axes(figure, top, height, left=LEFT, width=WIDTH - LEFT - RIGHT, xlim=(0, duration_s))
    ticks_s = ticks(duration_s)
    axes.set_xticks(ticks_s, [clock(second) for second in ticks_s])
    axes.tick_params(labelbottom=labels, **TICKS)
    axes.grid(visible=False, axis="y")
    return axes


def _draw_frames(axes: Axes, frames: Sequence[np.ndarray], duration_s: float) -> None:
    step_s = duration_s / len(frames)
    for i, frame in enumerate(frames):
        axes.imshow(frame, extent=(i * step_s, (i + 1) * step_s, 0, 1), aspect="auto", interpolation="antialiased")
    axes.set(xlim=(0, duration_s), ylim=(0, 1), yticks=[])
    axes.grid(visible=False)


def _draw_bars(axes: Axes, rows: Sequence[tuple[str, Sequence[tuple[float, ...]]]], query: Query) -> None:
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for y, (name, windows) in enumerate(rows):
        spans = [(window[0], window[1] - window[0]) for window in windows]
        color = TRUTH if name == "truth" else PREDICTION
        opacity = 1.0 if name in ("truth", "moment 1") else 0.45
        axes.broken_barh(spans, (y - 0.34, 0.68), color=color, alpha=opacity, linewidth=0)
        if name != "truth":
            _write_column(axes, y, f"{windows[0][2]:.2f}", x=SCORE)
            if query.windows:
                iou = interval_iou(np.array(windows[0][:2]), np.array(query.windows))
                _write_column(axes, y, f"{np.nanmax(iou):.2f}", x=IOU)
    if rows[-1][0] != "truth":
        _write_column(axes, -1, "score", x=SCORE)
        _write_column(axes, -1, "IoU" if query.windows else "", x=IOU)


def _write_column(axes: Axes, y: float, text: str, *, x: float) -> None:
    """Writes to the right of the axes, in line with the bars at `y`."""
    color = GREY if y < 0 else "black"
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), size=8, color=color, ha="right", va="center")


def _draw_curves(axes: Axes, query: Query, answer: Prediction) -> None:
    axes.set_ylim(-0.06, 1.12)
    axes.set_yticks([0.5], ["saliency"])
    if query.clip_ids:
        _draw_ratings(axes, query)
    if answer.saliency:
        scores = np.array(answer.saliency)
        scaled = (scores - scores.min()) / (np.ptp(scores) or 1.0)
        centres_s = rated_spans(query, len(scores)).mean(axis=1)
        order = np.argsort(centres_s, kind="stable")
        axes.plot(centres_s[order], scaled[order], color=PREDICTION, linewidth=1.6)


def _draw_ratings(axes: Axes, query: Query) -> None:
    """Draws the mean rating as steps. Where rated windows overlap, it draws the mean over them."""
    windows = rated_spans(query, max(query.clip_ids) + 1)
    means = np.zeros(len(windows))
    means[list(query.clip_ids)] = np.mean(query.saliency, axis=1)
    edges = np.unique(windows)
    if len(edges) < 2:
        return
    middles = (edges[:-1] + edges[1:]) / 2
    inside = (windows[:, :1] <= middles) & (middles < windows[:, 1:])
    heights = means @ inside / np.maximum(1, inside.sum(axis=0))
    axes.stairs(heights / max(4.0, heights.max()), edges, fill=True, color=TRUTH, alpha=0.3)


def rated_spans(query: Query, count: int) -> np.ndarray:
    """[start, end) in seconds [count 2] of `count` rated clips: as annotated, or else consecutive clips of two seconds."""
    if len(query.rated_s) >= count:
        return np.array(query.rated_s)[:count]
    starts_s = np.arange(count)[:, None] * RATED_CLIP_S
    return np.minimum(starts_s + np.array([0.0, RATED_CLIP_S]), query.duration_s)

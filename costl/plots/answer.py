"""Draws answers as a PNG: frames of the video over time, the predicted moments, and the saliency of every clip."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from costl.pipeline.errors import VideoError
from costl.plots.headless import load_matplotlib
from costl.plots.terminal_text import clock, one_line, tick_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOMENTS_DRAWN, ANSWERS_DRAWN = 5, 40
THUMBNAIL_HEIGHT = 160  # pixels, twice the drawn size
# The layout in inches. All positions are computed from it, so that nothing overlaps.
WIDTH, LEFT, RIGHT, TOP = 10.0, 0.75, 0.6, 0.15
LINE, FRAMES, ROW, CURVE, TICKS, GAP = 0.24, 0.62, 0.2, 0.6, 0.25, 0.2
PREDICTION, GREY, EDGE = "#e76f51", "#6b7280", "#d1d5db"  # colours


class Span(Protocol):
    """An interval of a video and its score, such as `costl.ask.answer.Moment`."""

    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def score(self) -> float: ...


class Curve(Protocol):
    """A score for each clip, such as `costl.ask.answer.Saliency`."""

    @property
    def clip_s(self) -> float: ...
    @property
    def scores(self) -> Sequence[float]: ...


class Answer(Protocol):
    """`costl.ask.answer.Answer`, which cannot be imported here, because it calls this module in a notebook."""

    @property
    def query(self) -> str: ...
    @property
    def video(self) -> Path: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def moments(self) -> Sequence[Span]: ...
    @property
    def saliency(self) -> Curve: ...


def draw_answers(answers: Sequence[Answer], *, thumbnails: bool = True) -> bytes:
    """A PNG with a panel for each of the first forty answers, without frames if the video cannot be read."""
    # Imported here, because drawing is optional. Figure and Agg are used directly, because pyplot has global state.
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (answer, _frames(answer) if thumbnails else [], _wrapped(answer.query)) for answer in answers[:ANSWERS_DRAWN]
    ]
    height = TOP + sum(_height(*panel) for panel in panels)
    figure = Figure(figsize=(WIDTH, height), dpi=130, facecolor="white")
    top = TOP
    for panel in panels:
        _draw_panel(figure, top, *panel)
        top += _height(*panel)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    return image.getvalue()


def _frames(answer: Answer) -> list[np.ndarray]:
    """Thumbnails that fill the width of the time axis. Each comes from the middle of the interval that it covers."""
    from costl.pipeline.preview.cut import frames_at

    try:
        (first,) = frames_at(answer.video, [0.0], height=THUMBNAIL_HEIGHT)
        aspect = (WIDTH - LEFT - RIGHT) / FRAMES
        count = max(1, min(24, round(aspect * THUMBNAIL_HEIGHT / first.shape[1])))
        middles_s = [(i + 0.5) * answer.duration_s / count for i in range(count)]
        return frames_at(answer.video, middles_s, height=THUMBNAIL_HEIGHT)
    except VideoError:
        return []


def _wrapped(text: str) -> list[str]:
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    # matplotlib warns about characters that the font lacks; a box replaces them.
    drawable = "".join(letter if font.get_char_index(ord(letter)) else "\u25a1" for letter in one_line(text))
    return textwrap.wrap(drawable, 92, max_lines=3, placeholder=" ...") or [""]


def _height(answer: Answer, frames: Sequence[np.ndarray], lines: Sequence[str]) -> float:
    rows = min(MOMENTS_DRAWN, len(answer.moments))
    return LINE * (len(lines) + 1) + (FRAMES if frames else 0) + ROW * rows + CURVE + TICKS + GAP


def _draw_panel(figure: Figure, top: float, answer: Answer, frames: Sequence[np.ndarray], lines: Sequence[str]) -> None:
    for line in lines:
        _draw_text(figure, top, line, size=11, color="black")
        top += LINE
    _draw_text(figure, top, f"{_wrapped(answer.video.name)[0]} · {clock(answer.duration_s)}", size=8, color=GREY)
    top += LINE
    if frames:
        _draw_frames(_axes(figure, top, FRAMES, answer.duration_s), frames, answer.duration_s)
        top += FRAMES
    moments = answer.moments[:MOMENTS_DRAWN]
    if moments:
        _draw_moments(_axes(figure, top, ROW * len(moments), answer.duration_s), moments)
        top += ROW * len(moments)
    _draw_curve(_axes(figure, top, CURVE, answer.duration_s, ticks=True), answer)


def _draw_text(figure: Figure, top: float, text: str, *, size: float, color: str) -> None:
    y = 1 - (top + LINE / 2) / figure.get_figheight()
    figure.text(LEFT / WIDTH, y, text, size=size, color=color, va="center", parse_math=False)


def _axes(figure: Figure, top: float, height: float, duration_s: float, *, ticks: bool = False) -> Axes:
    page_height = figure.get_figheight()
    bottom = 1 - (top + height) / page_height
    box = (LEFT / WIDTH, bottom, (WIDTH - LEFT - RIGHT) / WIDTH, height / page_height)
    axes = figure.add_axes(box, xlim=(0, duration_s))
    ticks_s = np.arange(0, duration_s + 1e-6, tick_step(duration_s))
    axes.set_xticks(ticks_s, [clock(second) for second in ticks_s] if ticks else [""] * len(ticks_s))
    axes.tick_params(axis="both", length=0, labelsize=8, labelcolor=GREY)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_color(EDGE)
    return axes


def _draw_frames(axes: Axes, frames: Sequence[np.ndarray], duration_s: float) -> None:
    step_s = duration_s / len(frames)
    for i, frame in enumerate(frames):
        axes.imshow(frame, extent=(i * step_s, (i + 1) * step_s, 0, 1), aspect="auto", interpolation="antialiased")
    axes.set_xlim(0, duration_s)
    axes.set_ylim(0, 1)
    axes.grid(False)
    axes.set_yticks([])


def _draw_moments(axes: Axes, moments: Sequence[Span]) -> None:
    axes.set_ylim(len(moments) - 0.5, -0.5)
    axes.set_yticks(range(len(moments)), [f"moment {i + 1}" for i in range(len(moments))])
    for y, moment in enumerate(moments):
        span = (moment.start_s, moment.end_s - moment.start_s)
        axes.broken_barh([span], (y - 0.36, 0.72), color=PREDICTION, alpha=1.0 if y == 0 else 0.45, linewidth=0)
        axes.annotate(
            f"{moment.score:.2f}",
            xy=(1, y),
            xycoords=("axes fraction", "data"),
            xytext=(30, 0),
            textcoords="offset points",
            size=8,
            ha="right",
            va="center",
        )


def _draw_curve(axes: Axes, answer: Answer) -> None:
    axes.set_ylim(-0.06, 1.12)
    axes.set_yticks([0.5], ["saliency"])
    scores = np.array(answer.saliency.scores)
    scaled = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    centres = np.minimum((np.arange(len(scores)) + 0.5) * answer.saliency.clip_s, answer.duration_s)
    if answer.moments:
        axes.axvspan(answer.moments[0].start_s, answer.moments[0].end_s, color=PREDICTION, alpha=0.15, linewidth=0)
    axes.plot(centres, scaled, color=PREDICTION, linewidth=1.6)

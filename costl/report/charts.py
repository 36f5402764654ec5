"""The charts of a report: shapes are SVG that stretches with the page, text is HTML that stays readable on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from costl.data.annotations import Query, Window
from costl.report.query import Item, clock

MOMENTS_SHOWN = 5
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
MOST_TICKS = 5


def escape(text: object) -> str:
    """Escapes text for HTML and its attributes. Unprintable characters become a replacement character."""
    printable = [
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in str(text)
    ]
    return html.escape("".join(printable), quote=True)


def svg(name: str, shapes: str, *, size: tuple[float, float], title: str, description: str = "", css: str = "") -> str:
    """An SVG that stretches to its container, with a title and a description for screen readers.

    `name` is the prefix of its ids. `size` is the width and height of its coordinate system.
    """
    desc = f'<desc id="{name}-d">{escape(description)}</desc>' if description else ""
    labels = f"{name}-t {name}-d" if description else f"{name}-t"
    width, height = size
    return (
        f'<svg class="{css}" viewBox="0 0 {coordinate(width)} {coordinate(height)}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{labels}"><title id="{name}-t">{escape(title)}</title>{desc}{shapes}</svg>'
    )


def overview(item: Item) -> str:
    """A small timeline for the list: the truth above, the best moment below. Screen readers skip it."""
    bars = _bars(item.query.windows, "truth", top=0, height=0.9)
    bars += _bars([window[:2] for window in item.windows[:1]], "guess", top=1.1, height=0.9)
    return (
        f'<svg class="strip" viewBox="0 0 {coordinate(item.query.duration_s)} 2" preserveAspectRatio="none" '
        f'aria-hidden="true">{bars}</svg>'
    )


def timeline(name: str, item: Item) -> str:
    """The truth and the best moments over the video. Each moment is a row with its score and its IoU with the truth."""
    moments = item.windows[:MOMENTS_SHOWN]
    rows = [("truth", "", item.query.windows, "truth")] if item.query.windows else []
    for rank, moment in enumerate(moments, start=1):
        css = "guess" if rank == 1 else "guess weak"
        rows.append((f"moment {rank}", _score_and_iou(item, moment), (moment[:2],), css))
    if not rows:
        return '<p class="quiet">This query has no true moment and no predicted moment.</p>'
    shapes = _grid_lines(item.query, len(rows)) + "".join(
        _bars(windows, css, top=row + 0.16, height=0.68) for row, (_, _, windows, css) in enumerate(rows)
    )
    chart = svg(
        name,
        shapes,
        size=(item.query.duration_s, len(rows)),
        title=f"Timeline of {item.query.query}",
        description=_timeline_description(item),
    )
    names = "".join(f"<span>{label}</span>" for label, _, _, _ in rows)
    values = "".join(f"<span>{value}</span>" for _, value, _, _ in rows)
    return (
        f'<div class="chart" style="--rows:{len(rows)}"><div class="names" aria-hidden="true">{names}</div>{chart}'
        f'<div class="values" aria-hidden="true">{values}</div></div>{_axis(item.query)}'
    )


def saliency(name: str, item: Item) -> str:
    """The predicted saliency as a line, scaled to its range in the video, and the mean true ratings as steps."""
    scores = item.answer.saliency if item.answer else ()
    if not (scores or item.query.clip_ids):
        return ""
    ratings = zip(item.query.clip_ids, item.query.saliency, strict=True)
    means = {clip: sum(values) / len(values) for clip, values in ratings}
    spans = rated_spans(item.query, max([len(scores), *(clip + 1 for clip in means)]))
    description = []
    if scores:
        description.append(f"The predicted saliency is highest at {clock(_peak_s(spans, scores))}.")
    if means:
        highest = max(means.values())
        description.append(f"The mean rating is highest at {clock(_peak_s(spans, means))}, {highest:.1f} of 4.")
    chart = svg(
        name,
        _grid_lines(item.query, 1) + _rating_steps(means, spans) + _score_line(scores, item.query),
        size=(item.query.duration_s, 1),
        title=f"Saliency for {item.query.query}",
        description=" ".join(description),
    )
    return (
        f'<div class="chart tall" style="--rows:3"><div class="names" aria-hidden="true"><span>saliency</span></div>{chart}'
        f'<div class="values" aria-hidden="true"></div></div>{_axis(item.query)}'
    )


def training_curve(
    name: str, title: str, points: Sequence[tuple[int, float]], *, best_epoch: int | None, css: str
) -> str:
    """A card with one training metric by epoch. `best_epoch`, the epoch of the run's weights, is marked."""
    epochs = [epoch for epoch, _ in points]
    values = [value for _, value in points]
    low = min(values)
    high = max(values)
    spread = (high - low) or abs(high) or 1.0
    first = epochs[0]
    last = max(epochs[-1], first + 1)

    def position(epoch: int, value: float) -> str:
        x = coordinate(100 * (epoch - first) / (last - first))
        y = coordinate(94 - 88 * (value - low) / spread)
        return f"{x},{y}"

    line = f'<polyline class="{css}" points="{" ".join(position(*point) for point in points)}"/>'
    marks = ""
    description = f"{rounded(values[0])} at epoch {first}, {rounded(values[-1])} at epoch {epochs[-1]}."
    if best_epoch in epochs:
        best_value = values[epochs.index(best_epoch)]
        x, y = position(best_epoch, best_value).split(",")
        marks = f'<path class="best-epoch" d="M{x} 0V100"/><path class="dot {css}" d="M{x} {y}h0"/>'
        description += f" {rounded(best_value)} at the best epoch, {best_epoch}."
    if len(points) == 1:
        marks += f'<path class="dot {css}" d="M0 94h0"/>'
    chart = svg(name, marks + line, size=(100, 100), title=f"{title} by epoch", description=description, css="curve")
    values_text = f"{rounded(values[0])} → {rounded(values[-1])}"
    return (
        f'<figure class="card"><figcaption><b>{escape(title)}</b> <span>{values_text}</span>'
        f'</figcaption>{chart}<p class="ends" aria-hidden="true"><span>epoch {first}</span><span>{epochs[-1]}</span></p></figure>'
    )


def interval(name: str, title: str, value: float, bounds: tuple[float, float] | None) -> str:
    """A percentage as a bar from 0 to 100, and its interval as a line across the end of the bar."""
    bar = f'<path class="bar" d="M0 5H{coordinate(min(max(value, 0), 100))}"/>'
    description = f"{value:.2f} of 100."
    if bounds:
        low, high = (coordinate(min(max(bound, 0), 100)) for bound in bounds)
        bar += f'<path class="whisker" d="M{low} 5H{high}M{low} 2V8M{high} 2V8"/>'
        description += f" Interval {bounds[0]:.2f} to {bounds[1]:.2f}."
    return svg(name, bar, size=(100, 10), title=title, description=description, css="interval")


def rated_spans(query: Query, count: int) -> list[Window]:
    """[start, end) in seconds of `count` rated clips: as annotated, or else consecutive clips of two seconds."""
    if query.rated_s:
        return list(query.rated_s)
    return [(min(2.0 * i, query.duration_s), min(2.0 * (i + 1), query.duration_s)) for i in range(count)]


def coordinate(value: float) -> str:
    """A number for SVG and CSS with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def rounded(value: float) -> str:
    """A number with about three digits."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _timeline_description(item: Item) -> str:
    truth = ", ".join(f"{clock(start_s)} to {clock(end_s)}" for start_s, end_s in item.query.windows) or "unknown"
    names = "score · IoU" if item.query.windows else "score"
    moments = [
        f"Moment {rank}: {clock(moment[0])} to {clock(moment[1])}, {names} {_score_and_iou(item, moment)}."
        for rank, moment in enumerate(item.windows[:MOMENTS_SHOWN], start=1)
    ]
    return " ".join([f"Truth: {truth}.", *moments])


def _score_and_iou(item: Item, moment: tuple[float, ...]) -> str:
    iou = f" · {item.overlap(moment):.2f}" if item.query.windows else ""
    return f"{moment[2]:.2f}{iou}"


def _score_line(scores: Sequence[float], query: Query) -> str:
    if not scores:
        return ""
    low = min(scores)
    spread = (max(scores) - low) or 1.0
    points = " ".join(
        f"{coordinate((start_s + end_s) / 2)},{coordinate(1 - 0.94 * (score - low) / spread - 0.03)}"
        for (start_s, end_s), score in zip(rated_spans(query, len(scores)), scores, strict=True)
    )
    return f'<polyline class="guess" points="{points}"/>'


def _rating_steps(means: Mapping[int, float], spans: Sequence[Window]) -> str:
    highest = max([4.0, *means.values()])
    return "".join(
        _rect(*spans[clip], top=1 - mean / highest, height=mean / highest, css="truth weak")
        for clip, mean in sorted(means.items())
    )


def _bars(windows: Sequence[tuple[float, ...]], css: str, *, top: float, height: float) -> str:
    return "".join(_rect(window[0], window[1], top=top, height=height, css=css) for window in windows)


def _rect(start: float, end: float, *, top: float, height: float, css: str) -> str:
    return (
        f'<rect class="{css}" x="{coordinate(start)}" y="{coordinate(top)}" width="{coordinate(max(0.0, end - start))}" '
        f'height="{coordinate(height)}"/>'
    )


def _ticks_s(query: Query) -> list[float]:
    step_s = next(
        (step for step in TICK_STEPS_S if query.duration_s / step <= MOST_TICKS), query.duration_s / MOST_TICKS
    )
    return [i * step_s for i in range(int(query.duration_s / step_s + 1e-6) + 1)]


def _grid_lines(query: Query, height: int) -> str:
    lines = "".join(f"M{coordinate(second)} 0V{height}" for second in _ticks_s(query))
    return f'<path class="lines" d="{lines}"/>'


def _axis(query: Query) -> str:
    labels = "".join(
        f'<span style="left:{coordinate(100 * second / query.duration_s)}%">{clock(second)}</span>'
        for second in _ticks_s(query)
    )
    return f'<div class="axis" aria-hidden="true">{labels}</div>'


def _peak_s(spans: Sequence[Window], values: Sequence[float] | Mapping[int, float]) -> float:
    """The centre of the clip with the largest finite value, in seconds; the first such clip wins a tie."""
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    best = max(pairs, key=lambda pair: (pair[1] if math.isfinite(pair[1]) else -math.inf, -pair[0]))[0]
    return sum(spans[best]) / 2

"""The charts of a report as SVG in HTML: shapes stretch with the page, words beside them stay readable on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from costl.data.annotations import Query, Window
from costl.report.item import Item, clock

MOMENTS_SHOWN = 5
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
TICKS = 5


def escape(text: object) -> str:
    """Text for HTML, in an attribute too; what no page can hold becomes a replacement character."""
    plain = "".join(mark if mark.isprintable() or mark in "\n\t" else "\N{REPLACEMENT CHARACTER}" for mark in str(text))
    return html.escape(plain, quote=True)


def picture(name: str, shapes: str, *, box: tuple[float, float], title: str, about: str = "", css: str = "") -> str:
    """An SVG [0, box] that fills its place, with a title and a description for those who cannot see it."""
    described = f'<desc id="{name}-d">{escape(about)}</desc>' if about else ""
    labels = f"{name}-t {name}-d" if about else f"{name}-t"
    return (
        f'<svg class="{css}" viewBox="0 0 {number(box[0])} {number(box[1])}" preserveAspectRatio="none" role="img" '
        f'aria-labelledby="{labels}"><title id="{name}-t">{escape(title)}</title>{described}{shapes}</svg>'
    )


def strip(item: Item) -> str:
    """The truth above and the best moment below, for the list; what it shows stands in the columns beside it."""
    bars = _bars(item.query.windows, "truth", top=0, height=0.9)
    bars += _bars([window[:2] for window in item.windows[:1]], "guess", top=1.1, height=0.9)
    return (
        f'<svg class="strip" viewBox="0 0 {number(item.query.duration_s)} 2" preserveAspectRatio="none" '
        f'aria-hidden="true">{bars}</svg>'
    )


def timeline(name: str, item: Item) -> str:
    """Truth and best moments over the video, each in a row with its score and its overlap with the truth."""
    moments = item.windows[:MOMENTS_SHOWN]
    truth = [("truth", "", item.query.windows, "truth")] if item.query.windows else []
    rows = truth + [
        (f"moment {rank}", _numbers_of(item, moment), (moment[:2],), "guess" if rank == 1 else "guess weak")
        for rank, moment in enumerate(moments, start=1)
    ]
    if not rows:
        return '<p class="quiet">No true moment, and none was predicted.</p>'
    shapes = _grid_lines(item.query, len(rows)) + "".join(
        _bars(windows, css, top=row + 0.16, height=0.68) for row, (_, _, windows, css) in enumerate(rows)
    )
    chart = picture(
        name,
        shapes,
        box=(item.query.duration_s, len(rows)),
        title=f"Timeline of {item.query.query}",
        about=in_words(item),
    )
    names = "".join(f"<span>{label}</span>" for label, _, _, _ in rows)
    values = "".join(f"<span>{value}</span>" for _, value, _, _ in rows)
    return (
        f'<div class="chart" style="--rows:{len(rows)}"><div class="names" aria-hidden="true">{names}</div>{chart}'
        f'<div class="values" aria-hidden="true">{values}</div></div>{_axis(item.query)}'
    )


def saliency(name: str, item: Item) -> str:
    """Predicted saliency, scaled to its own range in the video, before the mean of the true ratings."""
    scores = item.answer.saliency if item.answer else ()
    if not (scores or item.query.clip_ids):
        return ""
    spans = rated_spans(item.query, len(scores))
    line, low, high = "", min(scores, default=0.0), max(scores, default=0.0)
    if scores:
        points = " ".join(
            f"{number((a + b) / 2)},{number(1 - 0.94 * (score - low) / ((high - low) or 1.0) - 0.03)}"
            for (a, b), score in zip(spans, scores, strict=True)
        )
        line = f'<polyline class="guess" points="{points}"/>'
    ratings = dict(zip(item.query.clip_ids, item.query.saliency, strict=True))
    means = {clip: sum(values) / len(values) for clip, values in ratings.items()}
    spans = rated_spans(item.query, max([len(scores), *(clip + 1 for clip in means)]))
    tallest = max([4.0, *means.values()])
    steps = "".join(
        _rect(*spans[clip], top=1 - mean / tallest, height=mean / tallest, css="truth weak")
        for clip, mean in sorted(means.items())
    )
    about = [f"Predicted saliency is highest at {clock(_peak(spans, scores))}."] if scores else []
    about += [f"Rated highest at {clock(_peak(spans, means))}, {max(means.values()):.1f} of 4."] if means else []
    chart = picture(
        name,
        _grid_lines(item.query, 1) + steps + line,
        box=(item.query.duration_s, 1),
        title=f"Saliency for {item.query.query}",
        about=" ".join(about),
    )
    return (
        f'<div class="chart tall" style="--rows:3"><div class="names" aria-hidden="true"><span>saliency</span></div>{chart}'
        f'<div class="values" aria-hidden="true"></div></div>{_axis(item.query)}'
    )


def curve(name: str, title: str, points: Sequence[tuple[int, float]], *, kept: int | None, css: str) -> str:
    """One number of training by epoch as a small card; `kept` is the epoch whose weights are used."""
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)
    spread = (high - low) or abs(high) or 1.0

    def at(epoch: int, value: float) -> str:
        return f"{number(100 * (epoch - first) / (last - first))},{number(94 - 88 * (value - low) / spread)}"

    line = f'<polyline class="{css}" points="{" ".join(at(*point) for point in points)}"/>'
    mark, said = "", ""
    if kept in epochs:
        x, y = at(kept, values[epochs.index(kept)]).split(",")
        mark = f'<path class="kept" d="M{x} 0V100"/><path class="dot {css}" d="M{x} {y}h0"/>'
        said = f" Epoch {kept}, the one kept: {short(values[epochs.index(kept)])}."
    if len(points) == 1:
        mark += f'<path class="dot {css}" d="M0 94h0"/>'
    about = f"{short(values[0])} at epoch {first}, {short(values[-1])} at epoch {epochs[-1]}.{said}"
    chart = picture(name, mark + line, box=(100, 100), title=f"{title} by epoch", about=about, css="curve")
    return (
        f'<figure class="card"><figcaption><b>{escape(title)}</b> <span>{short(values[0])} → {short(values[-1])}</span>'
        f'</figcaption>{chart}<p class="ends" aria-hidden="true"><span>epoch {first}</span><span>{epochs[-1]}</span></p></figure>'
    )


def interval(name: str, title: str, value: float, bounds: tuple[float, float] | None) -> str:
    """A percentage as a bar from 0 to 100, its interval as a line across the bar's end."""
    bar = f'<path class="bar" d="M0 5H{number(min(max(value, 0), 100))}"/>'
    about = f"{value:.2f} of 100."
    if bounds:
        low, high = (min(max(bound, 0), 100) for bound in bounds)
        bar += f'<path class="whisker" d="M{number(low)} 5H{number(high)}M{number(low)} 2V8M{number(high)} 2V8"/>'
        about += f" Interval {bounds[0]:.2f} to {bounds[1]:.2f}."
    return picture(name, bar, box=(100, 10), title=title, about=about, css="interval")


def rated_spans(query: Query, count: int) -> list[Window]:
    """[start, end) in seconds of each of `count` rated clips: as annotated, or else two seconds one after the other."""
    if query.rated_s:
        return list(query.rated_s)
    return [(min(2.0 * i, query.duration_s), min(2.0 * (i + 1), query.duration_s)) for i in range(count)]


def in_words(item: Item) -> str:
    """What the timeline shows, for those who cannot see it."""
    truth = ", ".join(f"{clock(a)} to {clock(b)}" for a, b in item.query.windows) or "unknown"
    names = "score · IoU" if item.query.windows else "score"
    moments = [
        f"Moment {rank}: {clock(moment[0])} to {clock(moment[1])}, {names} {_numbers_of(item, moment)}."
        for rank, moment in enumerate(item.windows[:MOMENTS_SHOWN], start=1)
    ]
    return " ".join([f"Truth: {truth}.", *moments])


def number(value: float) -> str:
    """A coordinate, short and the same everywhere."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def short(value: float) -> str:
    """A value of any size in three digits or so."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _numbers_of(item: Item, moment: tuple[float, ...]) -> str:
    overlap = f" · {item.overlap(moment):.2f}" if item.query.windows else ""
    return f"{moment[2]:.2f}{overlap}"


def _bars(windows: Sequence[tuple[float, ...]], css: str, *, top: float, height: float) -> str:
    return "".join(_rect(window[0], window[1], top=top, height=height, css=css) for window in windows)


def _rect(start: float, end: float, *, top: float, height: float, css: str) -> str:
    return (
        f'<rect class="{css}" x="{number(start)}" y="{number(top)}" width="{number(max(0.0, end - start))}" '
        f'height="{number(height)}"/>'
    )


def _ticks(query: Query) -> list[float]:
    step = next((step for step in TICK_STEPS_S if query.duration_s / step <= TICKS), query.duration_s / TICKS)
    return [i * step for i in range(int(query.duration_s / step + 1e-6) + 1)]


def _grid_lines(query: Query, height: int) -> str:
    lines = "".join(f"M{number(second)} 0V{height}" for second in _ticks(query))
    return f'<path class="lines" d="{lines}"/>'


def _axis(query: Query) -> str:
    labels = "".join(
        f'<span style="left:{number(100 * second / query.duration_s)}%">{clock(second)}</span>'
        for second in _ticks(query)
    )
    return f'<div class="axis" aria-hidden="true">{labels}</div>'


def _peak(spans: Sequence[Window], values: Sequence[float] | Mapping[int, float]) -> float:
    pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
    best = max(pairs, key=lambda pair: (pair[1] if math.isfinite(pair[1]) else -math.inf, -pair[0]))[0]
    return sum(spans[best]) / 2

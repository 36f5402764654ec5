"""An answer as HTML for the demo: moments to jump to, the curve with the moments marked, where the model looked."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costl.ask.answer import Answer
from costl.plots.headless import load_matplotlib
from costl.plots.text import clock, tick_step

WIDE, HIGH, AXIS = 1000, 120, 22  # of the curve, in units of its own
_HEAT = np.array([255.0, 96.0, 32.0])


@dataclass(frozen=True)
class Shown:
    """A frame of a moment with the heat of the patches laid over it: uint8 RGB [h w 3], and when it is on screen."""

    at_s: float
    picture: np.ndarray


def answer_html(answer: Answer, *, key: str, shown: Sequence[Shown]) -> str:
    """The whole answer; `key` is that of the video it is about, `shown` one picture for each moment, or none."""
    title = html.escape(answer.query)
    buttons = "".join(
        f'<button class="moment" data-start="{m.start_s:.3f}" data-rank="{rank}">'
        f'<b>{clock(m.start_s)} – {clock(m.end_s)}</b><span class="score">'
        f'<i style="width:{max(2.0, 100 * m.score):.0f}%"></i></span><small>{m.score:.2f}</small></button>'
        for rank, m in enumerate(answer.moments)
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in answer.notes)
    looks = "".join(_look(rank, one) for rank, one in enumerate(shown))
    return (
        f'<section class="answer" data-query="{html.escape(answer.query, quote=True)}" data-video="{html.escape(key)}">'
        f"<h3>{title}</h3>{_curve(answer)}{notes}"
        f'<div class="found"><div class="moments">{buttons}</div><div class="looks">{looks}</div></div></section>'
    )


def player_html(key: str, name: str) -> str:
    """The video itself."""
    label = html.escape(name, quote=True)
    return (
        f'<video controls playsinline preload="metadata" data-video="{html.escape(key)}" aria-label="{label}" '
        f'src="videos/{html.escape(key)}"></video>'
    )


def sentence_html(text: str) -> str:
    """What went wrong, in one sentence."""
    return f'<p class="problem" role="alert">{html.escape(text)}</p>'


def heat_over(frame: np.ndarray, share: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """A frame (uint8 [h w 3]) with the share of every patch [rows columns] as heat over its `box`, the most at full heat.

    What the model was not shown is darkened.
    """
    top, left, bottom, right = box
    rows, columns = share.shape
    y = ((np.arange(frame.shape[0]) + 0.5 - top) / (bottom - top)) * rows - 0.5
    x = ((np.arange(frame.shape[1]) + 0.5 - left) / (right - left)) * columns - 0.5
    heat = _between(_between(share / max(float(share.max()), 1e-9), y).T, x).T[..., None]
    seen = ((y >= -0.5) & (y <= rows - 0.5))[:, None] & ((x >= -0.5) & (x <= columns - 0.5))[None]
    weight = 0.85 * np.sqrt(heat) * seen[..., None]  # the root: a small share is a look, too
    dimmed = np.where(seen[..., None], 0.75, 0.35) * frame
    return np.round(dimmed * (1 - weight) + _HEAT * weight).astype(np.uint8)


def _between(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows of `values` [n k] at the fractional indices `at` [m], linearly, held at the ends: [m k]."""
    at = np.clip(at, 0, len(values) - 1)
    low = np.minimum(at.astype(int), max(0, len(values) - 2))
    part = (at - low)[:, None]
    return values[low] * (1 - part) + values[np.minimum(low + 1, len(values) - 1)] * part


def _curve(answer: Answer) -> str:
    """The saliency over time, moments marked, as SVG; a click on it means that time."""
    scores = np.array(answer.saliency.scores)
    scaled = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    per_s = WIDE / answer.duration_s
    centres = np.minimum((np.arange(len(scores)) + 0.5) * answer.saliency.clip_s, answer.duration_s) * per_s
    line = " ".join(f"{x:.1f},{HIGH - 8 - (HIGH - 20) * y:.1f}" for x, y in zip(centres, scaled, strict=True))
    marks = "".join(
        f'<rect class="mark" data-rank="{rank}" x="{m.start_s * per_s:.1f}" y="0" height="{HIGH}" '
        f'width="{max(2.0, (m.end_s - m.start_s) * per_s):.1f}"/>'
        for rank, m in enumerate(answer.moments)
    )
    ticks = np.arange(0, answer.duration_s + 1e-6, tick_step(answer.duration_s, most=6))
    labels = "".join(f'<span style="left:{100 * t / answer.duration_s:.2f}%">{clock(t)}</span>' for t in ticks)
    return (
        f'<div class="curve" data-duration="{answer.duration_s:.3f}"><svg viewBox="0 0 {WIDE} {HIGH}" '
        f'preserveAspectRatio="none" role="img" aria-label="saliency over time">{marks}'
        f'<polyline points="{line}"/></svg><div class="head"></div><div class="ticks">{labels}</div></div>'
    )


def _look(rank: int, shown: Shown) -> str:
    return (
        f'<figure class="look" data-rank="{rank}" hidden><img alt="where the model looked at {clock(shown.at_s)}" '
        f'src="data:image/png;base64,{_png(shown.picture)}"><figcaption>where the model looked, at '
        f"{clock(shown.at_s)}</figcaption></figure>"
    )


def _png(picture: np.ndarray) -> str:
    load_matplotlib()
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, picture, format="png")
    return base64.b64encode(file.getvalue()).decode()


STYLE = """
.gradio-container {width: 100% !important; max-width: 1040px !important; margin: 0 auto !important}
footer {display: none !important}
#costl-title h1 {font-size: 1.5rem; margin: .6rem 0 0}
#costl-title p {color: #6b7280; margin: .2rem 0 .6rem}
#costl-player video {width: 100%; max-height: 400px; background: #111; border-radius: 8px; display: block}
.answer h3 {margin: .4rem 0 .5rem; font-size: 1.05rem; overflow-wrap: anywhere}
.curve {position: relative; cursor: pointer; padding-bottom: 22px}
.curve svg {display: block; width: 100%; height: 96px; background: #f3f4f6; border-radius: 6px}
.curve polyline {fill: none; stroke: #d9480f; stroke-width: 2; vector-effect: non-scaling-stroke}
.curve .mark {fill: #e76f51; opacity: .22}
.curve .mark.chosen {opacity: .5}
.curve .head {position: absolute; top: 0; height: 96px; width: 2px; background: #111827; left: 0; pointer-events: none}
.curve .ticks span {position: absolute; bottom: 0; transform: translateX(-50%); font-size: 12px; color: #6b7280}
.curve .ticks span:first-child {transform: none}
.found {display: grid; grid-template-columns: minmax(220px, 2fr) 3fr; gap: 16px; margin-top: 10px; align-items: start}
.moments {display: grid; gap: 8px}
.moment {display: grid; grid-template-columns: 1fr 70px 36px; gap: 10px; align-items: center; text-align: left;
  padding: 10px 12px; border: 1px solid #d1d5db; border-radius: 8px; background: #fff; color: #111827; cursor: pointer}
.moment:hover, .moment:focus-visible {border-color: #d9480f}
.moment.chosen {border-color: #d9480f; background: #fff4ee}
.moment .score {height: 8px; border-radius: 4px; background: #e5e7eb; overflow: hidden}
.moment .score i {display: block; height: 100%; background: #e76f51}
.moment small {text-align: right}
.look {margin: 0}
.look img {width: 100%; max-height: 400px; object-fit: contain; object-position: left; border-radius: 8px; display: block}
.look figcaption, .note {color: #6b7280; font-size: 13px; margin: 4px 0}
.problem {padding: 12px 14px; border-radius: 8px; background: #fef2f2; color: #991b1b; overflow-wrap: anywhere}
@media (max-width: 640px) {.found {grid-template-columns: 1fr}}
"""

# An answer is shown only beside its own query and video: whatever arrives late, or stays while somebody types, is hidden.
SCRIPT = """
const video = () => document.querySelector('#costl-player video');
const query = () => (document.querySelector('#costl-query textarea, #costl-query input') || {}).value || '';
const sync = () => {
  const shown = video();
  element.querySelectorAll('.answer').forEach(answer => {
    answer.hidden = answer.dataset.query !== query().trim() || !shown || answer.dataset.video !== shown.dataset.video;
  });
};
const choose = rank => {
  element.querySelectorAll('.moment, .mark').forEach(one => one.classList.toggle('chosen', one.dataset.rank === rank));
  element.querySelectorAll('.look').forEach(one => { one.hidden = one.dataset.rank !== rank; });
};
const jump = second => { const shown = video(); if (shown) { shown.currentTime = second; } };
element.addEventListener('click', event => {
  const moment = event.target.closest('.moment');
  const curve = event.target.closest('.curve');
  if (moment) { choose(moment.dataset.rank); jump(Number(moment.dataset.start)); }
  else if (curve) {
    const box = curve.getBoundingClientRect();
    jump((event.clientX - box.left) / box.width * Number(curve.dataset.duration));
  }
});
const follow = () => {
  const shown = video();
  element.querySelectorAll('.curve').forEach(curve => {
    const share = shown ? Math.min(1, shown.currentTime / Number(curve.dataset.duration)) : 0;
    curve.querySelector('.head').style.left = 100 * share + '%';
  });
};
document.addEventListener('timeupdate', follow, true);
document.addEventListener('seeking', follow, true);
document.addEventListener('input', sync, true);
new MutationObserver(sync).observe(document.body, {childList: true, subtree: true});
watch('value', () => { sync(); choose('0'); follow(); });
"""

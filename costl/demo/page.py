"""The demo's HTML, CSS and script: moments to jump to, the saliency curve, and pictures of where the model looked."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from costl.ask.answer import Answer
from costl.plots.headless import load_matplotlib
from costl.plots.terminal_text import clock, tick_step

CURVE_WIDTH, CURVE_HEIGHT = 1000, 120  # units of the SVG
@dataclass(frozen=True)
class MomentPicture:
    """A frame of a moment under a heatmap of the patches: `pixels` are uint8 RGB, `time_s` is the time of the frame."""

    time_s: float
    pixels: UInt8[np.ndarray, "height width 3"]


def answer_html(answer: Answer, *, key: str, pictures: Sequence[MomentPicture]) -> str:
    """The HTML of an answer. `key` is the key of its video. `pictures` holds one picture for each moment, or nothing."""
    title = html.escape(answer.query)
    buttons = "".join(
        f'<button class="moment" data-start="{m.start_s:.3f}" data-rank="{rank}">'
        f'<b>{clock(m.start_s)} – {clock(m.end_s)}</b><span class="score">'
        f'<i style="width:{max(2.0, 100 * m.score):.0f}%"></i></span><small>{m.score:.2f}</small></button>'
        for rank, m in enumerate(answer.moments)
    )
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in answer.notes)
    figures = "".join(_figure(rank, picture) for rank, picture in enumerate(pictures))
    return (
        f'<section class="answer" data-query="{html.escape(answer.query, quote=True)}" data-video="{html.escape(key)}">'
        f"<h3>{title}</h3>{_curve(answer)}{notes}"
        f'<div class="results"><div class="moments">{buttons}</div><div class="heatmaps">{figures}</div></div></section>'
    )


def player_html(key: str, name: str) -> str:
    """The HTML of the video player."""
    label = html.escape(name, quote=True)
    return (
        f'<video controls playsinline preload="metadata" data-video="{html.escape(key)}" aria-label="{label}" '
        f'src="videos/{html.escape(key)}"></video>'
    )


def error_html(message: str) -> str:
    """The HTML of an error message."""
    return f'<p class="problem" role="alert">{html.escape(message)}</p>'


def _curve(answer: Answer) -> str:
    """The saliency over time as SVG, with the moments marked. A click on it jumps to that time."""
    scores = np.array(answer.saliency.scores)
    scaled = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    per_s = CURVE_WIDTH / answer.duration_s
    centres = np.minimum((np.arange(len(scores)) + 0.5) * answer.saliency.clip_s, answer.duration_s) * per_s
    heights = CURVE_HEIGHT - 8 - (CURVE_HEIGHT - 20) * scaled
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(centres, heights, strict=True))
    marks = "".join(
        f'<rect class="mark" data-rank="{rank}" x="{m.start_s * per_s:.1f}" y="0" height="{CURVE_HEIGHT}" '
        f'width="{max(2.0, (m.end_s - m.start_s) * per_s):.1f}"/>'
        for rank, m in enumerate(answer.moments)
    )
    ticks = np.arange(0, answer.duration_s + 1e-6, tick_step(answer.duration_s, most=6))
    labels = "".join(f'<span style="left:{100 * t / answer.duration_s:.2f}%">{clock(t)}</span>' for t in ticks)
    return (
        f'<div class="curve" data-duration="{answer.duration_s:.3f}"><svg viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="saliency over time">{marks}'
        f'<polyline points="{line}"/></svg><div class="head"></div><div class="ticks">{labels}</div></div>'
    )


def _figure(rank: int, picture: MomentPicture) -> str:
    time = clock(picture.time_s)
    return (
        f'<figure class="heatmap" data-rank="{rank}" hidden><img alt="where the model looked at {time}" '
        f'src="data:image/png;base64,{_png(picture.pixels)}"><figcaption>Where the model looked at {time}</figcaption>'
        "</figure>"
    )


def _png(pixels: np.ndarray) -> str:
    load_matplotlib()
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="png")
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
.results {display: grid; grid-template-columns: minmax(220px, 2fr) 3fr; gap: 16px; margin-top: 10px; align-items: start}
.moments {display: grid; gap: 8px}
.moment {display: grid; grid-template-columns: 1fr 70px 36px; gap: 10px; align-items: center; text-align: left;
  padding: 10px 12px; border: 1px solid #d1d5db; border-radius: 8px; background: #fff; color: #111827; cursor: pointer}
.moment:hover, .moment:focus-visible {border-color: #d9480f}
.moment.chosen {border-color: #d9480f; background: #fff4ee}
.moment .score {height: 8px; border-radius: 4px; background: #e5e7eb; overflow: hidden}
.moment .score i {display: block; height: 100%; background: #e76f51}
.moment small {text-align: right}
.heatmap {margin: 0}
.heatmap img {width: 100%; max-height: 400px; object-fit: contain; object-position: left; border-radius: 8px; display: block}
.heatmap figcaption, .note {color: #6b7280; font-size: 13px; margin: 4px 0}
.problem {padding: 12px 14px; border-radius: 8px; background: #fef2f2; color: #991b1b; overflow-wrap: anywhere}
@media (max-width: 640px) {.results {grid-template-columns: 1fr}}
"""

# An answer is visible only while its own query and video are on the page. Late answers stay hidden.
SCRIPT = """
const video = () => document.querySelector('#costl-player video');
const query = () => (document.querySelector('#costl-query textarea, #costl-query input') || {}).value || '';
const sync = () => {
  const player = video();
  element.querySelectorAll('.answer').forEach(answer => {
    answer.hidden = answer.dataset.query !== query().trim() || !player || answer.dataset.video !== player.dataset.video;
  });
};
const choose = rank => {
  element.querySelectorAll('.moment, .mark').forEach(one => one.classList.toggle('chosen', one.dataset.rank === rank));
  element.querySelectorAll('.heatmap').forEach(one => { one.hidden = one.dataset.rank !== rank; });
};
const jump = second => { const player = video(); if (player) { player.currentTime = second; } };
element.addEventListener('click', event => {
  const moment = event.target.closest('.moment');
  const curve = event.target.closest('.curve');
  if (moment) { choose(moment.dataset.rank); jump(Number(moment.dataset.start)); }
  else if (curve) {
    const box = curve.getBoundingClientRect();
    jump((event.clientX - box.left) / box.width * Number(curve.dataset.duration));
  }
});
const moveHead = () => {
  const player = video();
  element.querySelectorAll('.curve').forEach(curve => {
    const fraction = player ? Math.min(1, player.currentTime / Number(curve.dataset.duration)) : 0;
    curve.querySelector('.head').style.left = 100 * fraction + '%';
  });
};
document.addEventListener('timeupdate', moveHead, true);
document.addEventListener('seeking', moveHead, true);
document.addEventListener('input', sync, true);
new MutationObserver(sync).observe(document.body, {childList: true, subtree: true});
watch('value', () => { sync(); choose('0'); moveHead(); });
"""

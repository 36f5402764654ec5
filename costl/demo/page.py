"""The demo's HTML, CSS and script: moments to jump to, the saliency curve, and pictures of where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costl.ask.answer import Answer, clip_spans
from costl.plots.pages import curve_points, load_templates


def title_html() -> str:
    """The HTML of the title."""
    return _macros().title()


def answer_html(answer: Answer, *, key: str, pictures: Sequence[tuple[float, bytes]]) -> str:
    """The HTML of an answer. `key` is the key of its video.

    `pictures` holds the time in seconds and the PNG of one picture for each moment, or nothing.
    """
    scores = answer.saliency.scores
    spans = clip_spans(len(scores), answer.saliency.clip_s, answer.duration_s)
    points = curve_points([sum(span) / 2 for span in spans], scores)
    return _macros().answer(answer, key, points, pictures)


def player_html(key: str, name: str) -> str:
    """The HTML of the video player."""
    return _macros().player(key, name)


def error_html(message: str) -> str:
    """The HTML of an error message."""
    return _macros().problem(message)


def _macros() -> Any:
    return load_templates("costl.demo").get_template("demo.html").module


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

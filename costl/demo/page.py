"""The demo's HTML, CSS and script: progress, moments to jump to, the saliency curve, pictures of where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costl.ask.answer import Answer, clip_spans
from costl.pipeline.progress import Progress
from costl.plots.pages import load_templates
from costl.plots.terminal_text import clock

# What each stage of an answer does, in the words of the page; any other stage belongs to the last step.
_STEPS = {
    "load": "Loading CLIP",
    "words": "Encoding the sentence",
    "wait": "Waiting until another video is extracted",
    "frames": "Decoding and encoding",
}


def title_html(*, has_library: bool = False) -> str:
    """The HTML of the title, with a link to the library page if there is one."""
    return _macros().title(has_library)


def result_html() -> str:
    """The HTML of the place for progress and answers, which `script` fills."""
    return _macros().result()


def answer_html(answer: Answer, *, pictures: Sequence[tuple[float, bytes]]) -> str:
    """The HTML of an answer. `pictures` holds the time in seconds and the PNG of one picture for each moment, or nothing."""
    return _macros().answer(answer, _curve_points(answer), pictures)


def player_html(key: str, name: str, start_s: float) -> str:
    """The HTML of the video player, whose own time at the start of the video is `start_s`."""
    return _macros().player(key, name, start_s)


def error_html(message: str) -> str:
    """The HTML of an error message."""
    return _macros().problem(message)


def progress_reply(progress: Progress | None) -> dict[str, Any]:
    """What the page shows while it waits: a text, and `done` of `total` clips; `total` is 0 where nothing is counted."""
    if progress is None:
        return {"text": "Opening the video", "done": 0, "total": 0}
    text = _STEPS.get(progress.stage, "Finding moments")
    if progress.stage != "frames":
        return {"text": text, "done": 0, "total": 0}
    left_s = getattr(progress.speed, "left_s", None)
    left = "" if left_s is None else f", about {clock(left_s)} left"
    text += f": {progress.done} of {progress.total} clips{left}"
    return {"text": text, "done": progress.done, "total": progress.total}


def style() -> str:
    """The CSS of the page."""
    return load_templates("costl.demo").get_template("demo.css").render()


def script() -> str:
    """The JavaScript of the page."""
    return load_templates("costl.demo").get_template("demo.js").render()


def _curve_points(answer: Answer) -> list[tuple[float, float]]:
    """The saliency as points (seconds, y) of an SVG of height 1, from the start to the end of the video.

    Saliency has no unit and no limits. So the lowest clip is at 0 and the highest at the score of the best moment: the
    curve of a sentence that nothing matches is low.
    """
    scores = answer.saliency.scores
    lowest = min(scores)
    span = max(scores) - lowest
    best = max((moment.score for moment in answer.moments), default=0.0)
    ys = [round(1 - best * ((score - lowest) / span if span else 1.0), 4) for score in scores]
    xs = [sum(span) / 2 for span in clip_spans(len(scores), answer.saliency.clip_s, answer.duration_s)]
    return list(zip([0.0, *xs, answer.duration_s], [ys[0], *ys, ys[-1]], strict=True))


def _macros() -> Any:
    return load_templates("costl.demo").get_template("demo.html").module

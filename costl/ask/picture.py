"""Draws answers as a PNG: frames of the video over time, the moments, and the saliency of every clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costl.ask.answer import Answer, clip_spans
from costl.data.annotations import Prediction, Query
from costl.pipeline.errors import VideoError
from costl.pipeline.preview.cut import frames_at
from costl.plots.predictions import FRAMES_ASPECT, MOST_DRAWN, Panel, draw_panels

MOMENTS_DRAWN = 5
FRAME_HEIGHT = 160  # pixels, twice the drawn size


def draw_answers(answers: Sequence[Answer]) -> bytes:
    """A PNG with a panel for each of the first forty answers, without frames if the video cannot be read."""
    return draw_panels([_panel(answer) for answer in answers[:MOST_DRAWN]])


def _panel(answer: Answer) -> Panel:
    windows = tuple((moment.start_s, moment.end_s, moment.score) for moment in answer.moments)
    prediction = Prediction(0, answer.query, answer.video.name, windows, answer.saliency.scores)
    spans = clip_spans(len(answer.saliency.scores), answer.saliency.clip_s, answer.duration_s)
    query = Query(0, answer.query, answer.video.name, answer.duration_s, rated_s=spans)
    return Panel(query, prediction, moments=MOMENTS_DRAWN, frames=_frames(answer))


def _frames(answer: Answer) -> list[np.ndarray]:
    """Frames that fill the width of the time axis. Each comes from the middle of the interval that it covers."""
    try:
        (first,) = frames_at(answer.video, [0.0], height=FRAME_HEIGHT)
        count = max(1, min(24, round(FRAMES_ASPECT * FRAME_HEIGHT / first.shape[1])))
        middles_s = [(i + 0.5) * answer.duration_s / count for i in range(count)]
        return frames_at(answer.video, middles_s, height=FRAME_HEIGHT)
    except VideoError:
        return []

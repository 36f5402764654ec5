"""What a video answers to a sentence, and how that is told: a table, JSON lines, CSV, subtitles."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError
from costl.plots.text import bar, clock, one_line, sparkline

FORMATS = ("table", "json", "jsonl", "csv", "srt", "vtt")


@dataclass(frozen=True)
class Moment:
    """[start_s, end_s) of a video and the score in [0, 1] by which moments of one answer are ranked."""

    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Saliency:
    """How well each clip of `clip_s` seconds, one after the other, shows what the sentence says: scores [t], unbounded."""

    clip_s: float
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """What one video answers to one query: `moments`, best first, and the saliency of every clip; `notes` to know.

    Shows itself as a table in a terminal and as a picture with thumbnails in a notebook.
    """

    query: str
    video: Path
    duration_s: float
    moments: tuple[Moment, ...]
    saliency: Saliency
    notes: tuple[str, ...] = ()

    def top(self, count: int) -> Answer:
        """The same with the `count` best moments."""
        return Answer(self.query, self.video, self.duration_s, self.moments[:count], self.saliency, self.notes)

    def to_row(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return {
            "video": str(self.video),
            "query": self.query,
            "duration_s": self.duration_s,
            "moments": [{"start_s": m.start_s, "end_s": m.end_s, "score": m.score} for m in self.moments],
            "saliency": {"clip_s": self.saliency.clip_s, "scores": list(self.saliency.scores)},
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        lines = [f"{one_line(self.video.name)} · {clock(self.duration_s)} · {one_line(self.query)}"]
        times = [f"{clock(m.start_s)} – {clock(m.end_s)}" for m in self.moments]
        width = max(map(len, times), default=0)
        lines += [
            f"{rank:4}  {time:{width}}  {m.score:.2f}  {bar(m.score)}".rstrip()
            for rank, (time, m) in enumerate(zip(times, self.moments, strict=True), start=1)
        ]
        curve = sparkline(self.saliency.scores)
        return "\n".join([*lines, f"      {curve}  saliency", *(f"      note: {note}" for note in self.notes)])

    def _repr_png_(self) -> bytes:
        from costl.plots.answer import draw_answers

        return draw_answers([self])

    def _repr_html_(self) -> str:
        image = base64.b64encode(self._repr_png_()).decode()
        name = html.escape(f"{self.video.name}: {self.query}", quote=True)
        return f'<img alt="{name}" style="max-width:100%" src="data:image/png;base64,{image}">'


def told(answers: Sequence[Answer], form: str) -> str:
    """The answers as one text in one of FORMATS, ending in a line break. Subtitles are for one video's answers."""
    if form == "table":
        return "\n\n".join(map(repr, answers)) + "\n"
    rows = [answer.to_row() for answer in answers]
    if form == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return {"csv": _csv, "srt": _srt, "vtt": _vtt}[form](answers)


def _csv(answers: Sequence[Answer]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["video", "query", "rank", "start_s", "end_s", "score"])
    for answer in answers:
        for rank, m in enumerate(answer.moments, start=1):
            rows.writerow([answer.video, answer.query, rank, f"{m.start_s:.3f}", f"{m.end_s:.3f}", f"{m.score:.4f}"])
    return text.getvalue()


def _srt(answers: Sequence[Answer]) -> str:
    # Without "-->", which would make a line of text the times of another cue.
    cues = [
        f"{number}\n{_stamp(start, ',')} --> {_stamp(end, ',')}\n{text.replace('-->', '→')}\n"
        for number, (start, end, text) in enumerate(_cues(answers), start=1)
    ]
    return "\n".join(cues)


def _vtt(answers: Sequence[Answer]) -> str:
    cues = [
        f"{_stamp(start, '.')} --> {_stamp(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _cues(answers)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cues(answers: Iterable[Answer]) -> list[tuple[int, int, str]]:
    """(start, end, text) in milliseconds, by time; a cue lasts a millisecond at least."""
    cues = [
        (round(m.start_s * 1000), max(round(m.end_s * 1000), round(m.start_s * 1000) + 1), m.score, answer.query)
        for answer in answers
        for m in answer.moments
    ]
    return [(start, end, f"{one_line(query)} ({score:.2f})") for start, end, score, query in sorted(cues)]


def _stamp(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"


SUBTITLES = ("srt", "vtt")


def check_queries(queries: Sequence[str]) -> None:
    """Raises UsageError for a query that no model could make sense of, and for none at all."""
    if not queries:
        raise UsageError('no query. Say what to look for, such as "a dog catches a ball".')
    for query in queries:
        if not any(letter.isalnum() for letter in query):
            raise UsageError(f'query {query!r}: no letter in it. Say what to look for, such as "a dog catches a ball".')


def check_form(form: str, videos: Sequence[Path]) -> None:
    """Raises UsageError where a format cannot hold what was asked: subtitles belong to one video."""
    if form in SUBTITLES and len(videos) > 1:
        raise UsageError(
            f"--format {form} is for one video, {len(videos)} were given. Ask one after the other, or use jsonl."
        )

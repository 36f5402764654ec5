"""Answers as text: a table, JSON, JSON lines, CSV, SRT and WebVTT subtitles."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from costl.ask.answer import Answer
from costl.pipeline.errors import UsageError
from costl.plots.terminal_text import one_line

FORMATS = ("table", "json", "jsonl", "csv", "srt", "vtt")
SUBTITLES = ("srt", "vtt")


def check_format(output_format: str, videos: Sequence[Path]) -> None:
    """Raises UsageError for subtitles of more than one video."""
    if output_format in SUBTITLES and len(videos) > 1:
        raise UsageError(
            f"--format {output_format} is for one video, but there are {len(videos)}. "
            "Run the command once for each video, or use --format jsonl."
        )


def format_answers(answers: Sequence[Answer], output_format: str) -> str:
    """The answers as one text in one of FORMATS, with a line break at the end. Subtitles need answers of one video."""
    if output_format == "table":
        return "\n\n".join(map(repr, answers)) + "\n"
    rows = [answer.to_row() for answer in answers]
    if output_format == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if output_format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return {"csv": _csv, "srt": _srt, "vtt": _vtt}[output_format](answers)


def _csv(answers: Sequence[Answer]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["video", "query", "rank", "start_s", "end_s", "score"])
    for answer in answers:
        for rank, m in enumerate(answer.moments, start=1):
            rows.writerow([answer.video, answer.query, rank, f"{m.start_s:.3f}", f"{m.end_s:.3f}", f"{m.score:.4f}"])
    return text.getvalue()


def _srt(answers: Sequence[Answer]) -> str:
    # A query with "-->" in it would be read as the times of another cue.
    cues = [
        f"{number}\n{_timestamp(start, ',')} --> {_timestamp(end, ',')}\n{text.replace('-->', '→')}\n"
        for number, (start, end, text) in enumerate(_cues(answers), start=1)
    ]
    return "\n".join(cues)


def _vtt(answers: Sequence[Answer]) -> str:
    cues = [
        f"{_timestamp(start, '.')} --> {_timestamp(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _cues(answers)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cues(answers: Iterable[Answer]) -> list[tuple[int, int, str]]:
    """(start, end, text) of every moment, sorted by time, in milliseconds. A cue lasts at least one millisecond."""
    cues = []
    for answer in answers:
        for m in answer.moments:
            start_ms = round(m.start_s * 1000)
            end_ms = max(round(m.end_s * 1000), start_ms + 1)
            cues.append((start_ms, end_ms, m.score, answer.query))
    return [(start, end, f"{one_line(query)} ({score:.2f})") for start, end, score, query in sorted(cues)]


def _timestamp(milliseconds: int, decimal_point: str) -> str:
    seconds, fraction = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{decimal_point}{fraction:03}"

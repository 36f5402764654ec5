"""Answers as text: a table, JSON, JSON lines, CSV, SRT and WebVTT subtitles."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from math import floor
from pathlib import Path

from costl.ask.answer import Answer
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import refuse_overwrite, refuse_suffix
from costl.plots.terminal_text import one_line

FORMATS = ("table", "json", "jsonl", "csv", "srt", "vtt")
# How the text of each format begins. Real subtitles have no score behind their text.
_TIMES = r"[\d:,.]+ --> [\d:,.]+\n[^\n]+ \(\d\.\d\d\)\n"
SUBTITLE_BEGINNINGS = (rf"1\n{_TIMES}", rf"WEBVTT\n(\n{_TIMES}|\Z)")
_BEGINNINGS = (
    r"[^\n]* · [\d:]+ · [^\n]*\n",
    r'\[(\]|\n  \{\n    "video": [^\n]*\n    "query": [^\n]*\n    "duration_s": )',
    r'\{"video": [^\n]*"duration_s": [\d.]+, "moments": \[',
    r"video,query,rank,start_s,",
    *SUBTITLE_BEGINNINGS,
)
_MILLISECOND_ROUNDING = 1e-3  # of a millisecond: far more than a float is off, far less than a frame


def choose_format(output_format: str | None, out: Path | None, *, formats: Sequence[str] = FORMATS) -> str:
    """The one of `formats` that the suffix of `out` names; without one, or with .txt, `output_format` or else the first.

    Raises UsageError for another suffix, and if both name different formats.
    """
    suffix = out.suffix.lower() if out else ""
    if suffix in ("", ".txt"):
        return output_format or formats[0]
    if suffix[1:] not in formats[1:]:
        raise UsageError(f"{out}: ends in {suffix}, expected .txt, .{', .'.join(formats[1:])}.")
    if output_format not in (None, suffix[1:]):
        raise UsageError(f"{out}: ends in {suffix}, but the format is {output_format}. Change one of them.")
    return suffix[1:]


def refuse_outputs(out: Path | None, picture: Path | None, *, inputs: Iterable[Path], overwrite: bool) -> None:
    """Raises UsageError for files that `predict` must not write, as `files.refuse_overwrite` does, or not with this suffix."""
    inputs = list(inputs)
    if out is not None:
        refuse_overwrite(out, is_ours=lambda content: begins(content, _BEGINNINGS), inputs=inputs, overwrite=overwrite)
    if picture is not None:
        refuse_suffix(picture, [".png"])
        refuse_overwrite(picture, is_ours=lambda content: b"CoSTL" in content[:200], inputs=inputs, overwrite=overwrite)


def begins(content: bytes, beginnings: Iterable[str]) -> bool:
    """Whether a text in UTF-8 begins as one of these regular expressions."""
    return re.match("|".join(beginnings), content.decode(errors="replace")) is not None


def check_format(output_format: str, videos: Sequence[Path]) -> None:
    """Raises UsageError for subtitles of more than one video."""
    if output_format in ("srt", "vtt") and len(videos) > 1:
        raise UsageError(
            f"--format {output_format} is for one video, but there are {len(videos)}. "
            "Run the command once for each video, or use --format jsonl."
        )


def format_answers(answers: Sequence[Answer], output_format: str, *, show_all: bool = False) -> str:
    """The answers as one text in one of FORMATS, with a line break at the end. Subtitles need answers of one video.

    With `show_all`, a table also has the moments below the threshold.

    Raises UsageError for an unknown format.
    """
    if output_format not in FORMATS:
        raise UsageError(f"output_format is {output_format!r}, expected one of {', '.join(FORMATS)}.")
    if output_format == "table":
        return "\n\n".join(answer.table(show_below=show_all) for answer in answers) + "\n"
    if output_format == "csv":
        rows = [
            (answer.video, answer.query, rank, f"{m.start_s:.3f}", f"{m.end_s:.3f}", f"{m.score:.4f}")
            for answer in answers
            for rank, m in enumerate(answer.moments, start=1)
        ]
        return csv_text(["video", "query", "rank", "start_s", "end_s", "score"], rows)
    if output_format in ("srt", "vtt"):
        moments = [(m.start_s, m.end_s, m.score, answer.query) for answer in answers for m in answer.moments]
        return subtitles(moments, output_format)
    return json_text([answer.to_row() for answer in answers], output_format)


def json_text(rows: Sequence[object], output_format: str) -> str:
    """The rows as one JSON list ("json"), or each on a line of its own ("jsonl")."""
    if output_format == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, its lines ended by line feeds."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def subtitles(moments: Iterable[tuple[float, float, float, str]], output_format: str) -> str:
    """A cue for each moment (start_s, end_s, score, query), sorted by time, as "srt" or "vtt"."""
    blocks = ["WEBVTT\n"] if output_format == "vtt" else []
    for number, (start_s, end_s, score, query) in enumerate(sorted(moments), start=1):
        start_ms, end_ms = whole_ms(start_s, end_s)
        times = f"{_timestamp(start_ms)} --> {_timestamp(end_ms)}"
        text = f"{one_line(query)} ({score:.2f})"
        if output_format == "vtt":
            blocks.append(f"{times}\n{html.escape(text, quote=False)}\n")
        else:
            # A query with "-->" in it would be read as the times of another cue.
            blocks.append(f"{number}\n{times.replace('.', ',')}\n{text.replace('-->', '→')}\n")
    return "\n".join(blocks)


def whole_ms(start_s: float, end_s: float) -> tuple[int, int]:
    """[start, end) in milliseconds, at least one long. A moment that begins or ends with a frame still does so.

    Both are rounded down: a player shows a cue with a frame that begins at or after the cue's start, and before its end.
    """
    start_ms = floor(start_s * 1000 + _MILLISECOND_ROUNDING)
    return start_ms, max(floor(end_s * 1000 + _MILLISECOND_ROUNDING), start_ms + 1)


def _timestamp(milliseconds: int) -> str:
    seconds, fraction = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:03}"

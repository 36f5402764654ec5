"""Reads subtitles, WebVTT and SubRip: each cue is a sentence, and the file has the name of its video."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from costl.benchmarks.common import parse_all
from costl.converters.labels import Label, Labels
from costl.converters.times import parse_seconds
from costl.converters.video_folder import VideoFolder
from costl.pipeline.errors import UsageError

SUFFIXES = (".vtt", ".srt")
_ARROW = "-->"
_TAG = re.compile(r"</?[a-zA-Z0-9][^>]*>|\{\\[^}]*\}")  # <i>, <v Anna>, <00:01.5>, and positions such as {\an8}


def read(path: Path, text: str, videos: VideoFolder) -> Labels:
    """The cues of a file, without their markup. Raises UsageError that lists the first bad cues, with their line."""
    video = _video_name(path, videos)
    items = ((where, where, times, sentence) for where, times, sentence in _cues(path, text))
    labels = parse_all(items, lambda where, times, sentence: Label(where, video, sentence, windows=(_window(times),)))
    if not labels:
        raise UsageError(f"{path}: no cue with a text, expected lines such as 00:00:12.000 {_ARROW} 00:00:20.000.")
    return Labels(labels)


def _cues(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    """(file:line, the line of times, text) of each cue that has a text; notes, styles and numbers are left out."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if _ARROW not in line:
            continue
        cue = []
        for below in lines[number + 1 :]:
            if not below.strip() or _ARROW in below:
                break
            cue.append(below)
        sentence = " ".join(html.unescape(_TAG.sub("", " ".join(cue))).split())
        if sentence:
            yield f"{path}:{number + 1}", line, sentence


def _window(line: str) -> tuple[float, float]:
    start, _, rest = line.partition(_ARROW)
    end = rest.split()[0] if rest.split() else ""
    times = parse_seconds(start.strip()), parse_seconds(end)
    if not times[0] < times[1]:
        raise UsageError(f"the cue ends at {end}, not after its start at {start.strip()}")
    return times


def _video_name(path: Path, videos: VideoFolder) -> str:
    """The name of the file, without a language as in holiday.en.vtt unless a video has that name."""
    stem, _, language = path.stem.rpartition(".")
    is_language = re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})?", language) is not None
    return stem if stem and is_language and not videos.find(path.stem) and videos.find(stem) else path.stem

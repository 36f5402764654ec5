"""Guesses how a table is written: what separates its cells, and which column holds what."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costl.pipeline.errors import UsageError, first_few

# The names of each column, the preferred ones first. Units in a name, as in "start (s)" or "end_sec", do not matter.
NAMES: Mapping[str, Sequence[str]] = {
    "video": (
        *("video", "vid", "video_id", "videoid", "video_name", "video_file", "video_path", "videos", "file", "filename"),
        *("file_name", "filepath", "file_path", "path", "media", "media_file", "source_file", "clip", "clip_id", "name"),
    ),
    "start": (
        *("start", "start_time", "starttime", "time_start", "t_start", "tstart", "start_timestamp", "begin", "begin_time"),
        *("from", "onset", "in", "in_point", "timestamp_start", "tmin"),
    ),
    "end": (
        *("end", "end_time", "endtime", "time_end", "t_end", "tend", "end_timestamp", "stop", "stop_time", "to", "offset"),
        *("until", "out", "out_point", "finish", "timestamp_end", "tmax"),
    ),
    "text": (
        *("text", "query", "sentence", "caption", "description", "desc", "phrase", "narration", "utterance", "transcript"),
        *("annotation", "event", "action", "activity", "label", "class", "tag"),
    ),
    "split": ("split", "subset", "partition", "set"),
    "rating": ("rating", "ratings", "grade", "saliency"),
}
FRAMES: Mapping[str, Sequence[str]] = {
    "start": ("start_frame", "startframe", "frame_start", "begin_frame", "first_frame", "from_frame", "f_start", "frame"),
    "end": ("end_frame", "endframe", "frame_end", "stop_frame", "last_frame", "to_frame", "f_end"),
}
REQUIRED = ("video", "start", "end", "text")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_UNIT = re.compile(r"_?[(\[]?(?<![a-z])(s|sec|secs|second|seconds)[)\]]?$")


@dataclass(frozen=True)
class Columns:
    """The header of a table: `names`, the `delimiter` of its cells, and the index of each column that has a meaning.

    `frames`: start and end are numbers of frames.
    """

    names: tuple[str, ...]
    delimiter: str
    index: Mapping[str, int]
    frames: bool = False

    def message(self, name: str, encoding: str) -> str:
        """The guess as a sentence for the user; `name` is that of the file."""
        found = ", ".join(f"{meaning} = {self.names[index]!r}" for meaning, index in self.index.items())
        unused = [repr(column) for i, column in enumerate(self.names) if i not in self.index.values() and column]
        rest = f". Not used: {first_few(unused)}" if unused else ""
        return f"{name}: {encoding}, separated by {DELIMITERS[self.delimiter]}; {found}{rest}."

    def name(self, meaning: str) -> str:
        """The name of the column in the file."""
        return self.names[self.index[meaning]]


def guess_columns(path: Path, header: str) -> Columns:
    """The columns of the first line of a table. Raises UsageError if a required one is missing, naming those there are."""
    guesses = [_columns(header, delimiter) for delimiter in DELIMITERS]
    best = max(guesses, key=lambda columns: (len(columns.index), len(columns.names)))
    missing = [meaning for meaning in REQUIRED if meaning not in best.index]
    if missing:
        named = ", ".join(repr(name) for name in best.names)
        raise UsageError(
            f"{path}:1: no column for {', '.join(missing)} among {named[:200]}. "
            "Name the columns in the first line: video,start,end,text."
        )
    return best


def _columns(header: str, delimiter: str) -> Columns:
    try:
        names = tuple(cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), []))
    except csv.Error:  # a line far too long for a header
        names = (header[:40],)
    plain = [_plain(name) for name in names]
    seconds = _indices(plain, NAMES)
    frames = _indices(plain, FRAMES)
    in_frames = len(frames) > sum(meaning in seconds for meaning in FRAMES)
    found = {**seconds, **frames} if in_frames else seconds
    return Columns(names, delimiter, {meaning: found[meaning] for meaning in NAMES if meaning in found}, in_frames)


def _indices(names: Sequence[str], known: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The first column for each meaning, by the preferred of its names."""
    matches = {meaning: [names.index(name) for name in options if name in names] for meaning, options in known.items()}
    return {meaning: indices[0] for meaning, indices in matches.items() if indices}


def _plain(name: str) -> str:
    """A name of a column in lower case with underscores, without its unit: "Start (s)" is start."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # startTime
    plain = re.sub(r"[\s\-.]+", "_", spaced.strip()).casefold().strip("_")
    return _UNIT.sub("", plain).strip("_") or plain

"""Reads TVR (Lei et al. 2020): a JSON object a line, with a description, the video and its moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costl.benchmarks.common import parse_all, positive_in
from costl.converters.labels import Label, Labels
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import Window
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import json_object, numbers_in, qid_in, text_in
from costl.pipeline.formats.strict_json import json_lines


def read(path: Path, text: str, videos: VideoFolder) -> Labels:
    """The labels of a file; those of the public test split have no moment. Raises UsageError that lists the first bad lines."""
    items = ((f"{path}:{number}", f"{path}:{number}", line) for number, line in json_lines(text))
    return Labels(parse_all(items, lambda where, line: _label(where, json_object(line))))


def _label(where: str, row: Mapping[str, Any]) -> Label:
    windows = (_window(row),) if row.get("ts") is not None else ()
    qid = qid_in({"qid": row["desc_id"]}) if row.get("desc_id") is not None else None
    return Label(
        where, text_in(row, "vid_name"), text_in(row, "desc"), windows, duration_s=positive_in(row, "duration"), qid=qid
    )


def _window(row: Mapping[str, Any]) -> Window:
    times = numbers_in(row, "ts")
    if len(times) != 2:
        raise UsageError(f"'ts' holds {len(times)} times, expected start and end")
    return times[0], times[1]

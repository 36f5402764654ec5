"""Reads rows in the layout of QVHighlights, which is the project's own: one JSON object a line."""

from __future__ import annotations

from pathlib import Path

from costl.benchmarks.common import Row, own_row
from costl.converters.labels import Label, Labels
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import parse_rows


def read(path: Path, text: str, videos: VideoFolder) -> Labels:
    """The rows of a file as they are, with windows clipped to the video. Raises UsageError that lists the first bad lines."""
    rows = parse_rows(text, str(path), own_row)
    return Labels([_label(str(path), row) for row in rows])


def _label(where: str, row: Row) -> Label:
    query = row.query
    return Label(f"{where}: qid {query.qid!r}", query.vid, query.query, duration_s=query.duration_s, qid=query.qid, row=row)

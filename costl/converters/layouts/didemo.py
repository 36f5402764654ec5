"""Reads DiDeMo (Hendricks et al. 2017): sentences about videos of at most 30 s, timed in segments of five seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costl.benchmarks.common import parse_all
from costl.converters.labels import Label, Labels
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import Window, table_in
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.annotations import qid_in, text_in

SEGMENT_S = 5.0
_NOTE = "DiDeMo: of the moments of a sentence's annotators, the one that overlaps most with the others is used."


def read(path: Path, items: Sequence[Any], videos: VideoFolder) -> Labels:
    """The labels of a file, one moment for each sentence. Raises UsageError that lists the first bad items."""
    wheres = [f"{path}: item {number}" for number in range(1, len(items) + 1)]
    labels = parse_all(
        ((where, where, item) for where, item in zip(wheres, items, strict=True)),
        lambda where, item: _label(where, item, videos=videos),
    )
    return Labels(labels, (_NOTE,))


def _label(where: str, item: Any, *, videos: VideoFolder) -> Label:
    if not isinstance(item, dict):
        raise UsageError("expected an object with 'video', 'description' and 'times'")
    video = text_in(item, "video")
    windows = [_window(first, last) for first, last in table_in(item, "times", width=2)]
    segments = item.get("num_segments", 6)
    # A missing video may be shorter by up to one segment.
    at_most_s = SEGMENT_S * segments if isinstance(segments, int) and 0 < segments <= 6 else 6 * SEGMENT_S
    return Label(
        where,
        video,
        text_in(item, "description"),
        windows=(most_agreed(windows),) if windows else (),
        duration_s=None if videos.find(video) else at_most_s,
        qid=qid_in({"qid": item["annotation_id"]}) if item.get("annotation_id") is not None else None,
    )


def most_agreed(windows: Sequence[Window]) -> Window:
    """The window whose summed IoU with all windows is the largest; the first of several."""
    return max(windows, key=lambda window: sum(_iou(window, other) for other in windows))


def _window(first: float, last: float) -> Window:
    """Segments count from 0, and the last one belongs to the moment."""
    if not 0 <= first <= last or first != int(first) or last != int(last):
        raise UsageError(f"'times' holds {[first, last]}, expected the first and the last segment, counted from 0")
    return SEGMENT_S * first, SEGMENT_S * (last + 1)


def _iou(one: Window, other: Window) -> float:
    common = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, common) / (max(one[1], other[1]) - min(one[0], other[0]))


def is_item(item: Mapping[str, Any]) -> bool:
    """Whether an object is an annotation of DiDeMo."""
    return {"video", "description", "times"} <= item.keys()

"""Labels to rows: one row for each sentence and video, with all its windows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from costl.benchmarks.common import DROPPED, NO_WINDOW, Row, parse_all, row_with_windows
from costl.converters.labels import Label
from costl.converters.video_folder import VideoFolder
from costl.data.annotations import RATED_CLIP_S, Query, Window
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.formats.annotations import expected_clips

UNKNOWN_LENGTH = "rows of missing videos without a duration, dropped"


@dataclass(frozen=True)
class SplitRow:
    """A row with the split that its labels have, empty for none, and how many labels it was made from."""

    split: str
    row: Row
    labels: int

    @property
    def query(self) -> Query:
        """The query of the row."""
        return self.row.query


def make_rows(labels: Sequence[Label], videos: VideoFolder) -> list[SplitRow]:
    """The rows of labels, in the order of their first labels. A video is called like its file, if there is one.

    Labels of one sentence, video and split are joined: their windows are merged where they touch or overlap. Durations are
    those of the labels, or of the video files. The row of a missing video without a duration has no windows and the quirk
    NO_WINDOW. Raises UsageError that lists the first problems.
    """
    used = {label.qid for label in labels if label.qid is not None}
    qids = (qid for qid in count(1) if qid not in used)
    items = ((group[0].where, group) for group in _groups(labels, videos))
    rows = parse_all(items, lambda group: _row(group, videos=videos, qids=qids))
    _refuse_repeated_qids(rows)
    _refuse_other_units(rows)
    return rows


def _groups(labels: Iterable[Label], videos: VideoFolder) -> list[list[Label]]:
    """Labels that become one row. Rows that need no conversion stay as they are."""
    groups: dict[tuple[object, ...], list[Label]] = defaultdict(list)
    for number, label in enumerate(labels):
        own = number if label.row else None
        groups[own, label.split, videos.vid_of(label.video), label.sentence].append(label)
    return list(groups.values())


def _row(group: Sequence[Label], *, videos: VideoFolder, qids: Iterator[int]) -> SplitRow:
    first = group[0]
    vid = videos.vid_of(first.video)
    if first.row:
        return SplitRow(first.split, replace(first.row, query=replace(first.row.query, vid=vid)), 1)
    qid = next((label.qid for label in group if label.qid is not None), None)
    duration_s = _duration_s(first, videos)
    query = Query(
        qid=next(qids) if qid is None else qid,
        query=first.sentence,
        vid=vid,
        duration_s=duration_s or 1.0,
    )
    if duration_s is None:
        return SplitRow(first.split, Row(query, (UNKNOWN_LENGTH, NO_WINDOW)), len(group))
    row = row_with_windows(query, [window for label in group for window in label.windows])
    query = replace(row.query, windows=merge_windows(row.query.windows))
    return SplitRow(first.split, Row(_rated(query, group), row.quirks), len(group))


def _duration_s(label: Label, videos: VideoFolder) -> float | None:
    """The duration of a label's video in seconds; None where neither the labels nor a file have it. Raises UsageError."""
    if label.duration_s is not None or videos.find(label.video) is None:
        return label.duration_s
    try:
        return videos.duration_of(label.video)
    except VideoError as error:
        raise UsageError(f"the duration of its video is unknown: {str(error).rstrip('.')}") from error


def merge_windows(windows: Iterable[Window]) -> tuple[Window, ...]:
    """Windows in the order of their starts, joined where they touch or overlap."""
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return tuple(merged)


def _rated(query: Query, group: Sequence[Label]) -> Query:
    """The query with the ratings of its labels for the rated clips of two seconds, whose centre is in the window.

    A clip in several windows has the highest rating. A window without a centre of a clip rates the clip of its middle.
    Raises UsageError where only some of the labels have a rating, because clips without one would count as 0.
    """
    rated = [label for label in group if label.rating is not None]
    if not rated:
        return query
    if len(rated) < len(group):
        raise UsageError(f"{len(rated)} of the {len(group)} moments of {query.query[:40]!r} have a rating; give all one, or none")
    clips = expected_clips(query, RATED_CLIP_S)
    ratings: dict[int, float] = {}
    for label in rated:
        for window in label.windows:
            for clip in _clips_in(window, clips):
                ratings[clip] = max(ratings.get(clip, 0.0), label.rating or 0.0)
    clip_ids = tuple(sorted(ratings))
    return replace(query, clip_ids=clip_ids, saliency=tuple((ratings[clip],) for clip in clip_ids))


def _clips_in(window: Window, clips: int) -> list[int]:
    start, end = (time_s / RATED_CLIP_S for time_s in window)
    inside = range(max(0, math.ceil(start - 0.5)), min(clips, math.ceil(end - 0.5)))
    middle = int((start + end) // 2)
    return list(inside) or ([middle] if 0 <= middle < clips else [])


def _refuse_repeated_qids(rows: Iterable[SplitRow]) -> None:
    seen = set()
    for row in rows:
        key = row.split, row.row.qid
        if key in seen:
            raise UsageError(f"qid {row.row.qid!r} is in two rows of one split. Give each row a qid of its own, or none.")
        seen.add(key)


def _refuse_other_units(rows: Sequence[SplitRow]) -> None:
    """Raises UsageError where most windows lie outside their videos: times in milliseconds or frames look like that."""
    dropped = sum(quirk == DROPPED for row in rows for quirk in row.row.quirks)
    kept = sum(len(row.row.query.windows) for row in rows)
    if dropped > kept:
        first = next(row.row.query for row in rows if DROPPED in row.row.quirks)
        raise UsageError(
            f"{dropped} of {dropped + kept} moments lie outside their videos, such as one of {first.query[:40]!r} in {first.vid} "
            f"({first.duration_s:g} s). Times are seconds or hh:mm:ss; check their unit, and the names of the videos."
        )

"""Chooses which clips of a video a report shows for a query, and reads their pictures from the videos."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from costl.data.annotations import Moment, Prediction, Query
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.preview.thumbnails import Thumbnail, Thumbnails
from costl.pipeline.progress import Progress, ProgressCallback

Clip = tuple[str, int]  # video, index of the clip in it


def best_moment_frames(items: Sequence[tuple[Query, Prediction]], features: CacheReader) -> dict[int | str, np.ndarray]:
    """The middle frame (uint8 [height width 3]) of the best moment of each query, by qid.

    Queries without a predicted moment and queries about unreadable videos are left out.
    """
    clips: dict[int | str, Clip] = {}
    for query, answer in items:
        if answer.windows:
            start_s, end_s, _ = answer.windows[0]
            clips[query.qid] = query.vid, clip_at((start_s + end_s) / 2, query.vid, features)
    thumbnails, _ = read_thumbnails(clips.values(), features)
    return {
        qid: np.asarray(Image.open(io.BytesIO(thumbnails[clip].jpeg)).convert("RGB"))
        for qid, clip in clips.items()
        if clip in thumbnails
    }


def clip_at(second: float, video_id: str, features: CacheReader) -> int:
    """The index of the clip at this time; the first or the last clip if the time is outside of the video."""
    grid = features.grid(video_id)
    return min(max(int(second * grid.fps), 0), grid.clips - 1)


def clips_to_show(moments: Sequence[Moment], query: Query, features: CacheReader) -> dict[int, str]:
    """The clips to show for a query, in the order of time, each with a label.

    Shows start, middle and end of the best moment, and the middle of the second and third. If none of these times lies in
    the longest true moment, also shows the middle of that one.
    """
    labelled_times: list[tuple[float, str]] = []
    for rank, (start_s, end_s, _) in enumerate(moments[:3], start=1):
        fractions = {"start of ": 0.1, "middle of ": 0.5, "end of ": 0.9} if rank == 1 else {"": 0.5}
        for name, fraction in fractions.items():
            labelled_times.append((start_s + fraction * (end_s - start_s), f"{name}moment {rank}"))
    if query.windows:
        start_s, end_s = max(query.windows, key=lambda window: window[1] - window[0])
        if not any(start_s <= second < end_s for second, _ in labelled_times):
            labelled_times.append(((start_s + end_s) / 2, "true moment, missed"))
    labels: dict[int, str] = {}
    for second, label in labelled_times:
        labels.setdefault(clip_at(second, query.vid, features), label)
    return dict(sorted(labels.items()))


def read_thumbnails(
    clips: Iterable[Clip],
    features: CacheReader,
    folder: Path | None = None,
    progress: ProgressCallback = lambda _: None,
) -> tuple[dict[Clip, Thumbnail], list[str]]:
    """The thumbnails of these clips, and notes that say which are missing, and why. Opens each video once.

    Raises UsageError if `folder` is given and has no videos.
    """
    try:
        videos = Thumbnails(features, folder)
    except UsageError as error:
        if folder is not None:
            raise
        return {}, [f"No pictures: the videos are not available ({error}) Name their folder with --videos."]
    thumbnails: dict[Clip, Thumbnail] = {}
    notes: list[str] = []
    of_video: dict[str, set[int]] = {}
    for video_id, clip in clips:
        of_video.setdefault(video_id, set()).add(clip)
    for number, (video_id, wanted) in enumerate(of_video.items(), start=1):
        try:
            for clip, thumbnail in zip(sorted(wanted), videos.of_clips(video_id, list(wanted)), strict=True):
                thumbnails[video_id, clip] = thumbnail
        except VideoError as error:
            notes.append(f"No pictures of {video_id}: {error}")
        progress(Progress("pictures", number, len(of_video), video_id))
    return thumbnails, notes

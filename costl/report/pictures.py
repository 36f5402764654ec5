"""Chooses which clips of a video a report shows for a query, and reads their pictures from the videos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from costl.data.annotations import Moment, Prediction, Query
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.preview.thumbnails import Thumbnail, Thumbnails


def best_moment_frames(items: Sequence[tuple[Query, Prediction]], features: CacheReader) -> dict[int | str, np.ndarray]:
    """The middle frame (uint8 [height width 3]) of the best moment of each query, by qid.

    Queries without a predicted moment and queries about unreadable videos are left out.
    """
    frames: dict[int | str, np.ndarray] = {}
    try:
        thumbnails = Thumbnails(features)
    except UsageError:
        return frames
    for query, answer in items:
        if answer.windows:
            start_s, end_s, _ = answer.windows[0]
            clip = clip_at((start_s + end_s) / 2, query.vid, features)
            with suppress(VideoError):  # the pictures are optional
                (thumbnail,) = thumbnails.of_clips(query.vid, [clip])
                frames[query.qid] = np.asarray(Image.open(io.BytesIO(thumbnail.jpeg)).convert("RGB"))
    return frames


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
        fractions = {"start of": 0.1, "middle of": 0.5, "end of": 0.9} if rank == 1 else {"": 0.5}
        for name, fraction in fractions.items():
            labelled_times.append((start_s + fraction * (end_s - start_s), f"{name} moment {rank}".strip()))
    if query.windows:
        start_s, end_s = max(query.windows, key=lambda window: window[1] - window[0])
        if not any(start_s <= second < end_s for second, _ in labelled_times):
            labelled_times.append(((start_s + end_s) / 2, "true moment, missed"))
    labels: dict[int, str] = {}
    for second, label in labelled_times:
        labels.setdefault(clip_at(second, query.vid, features), label)
    return dict(sorted(labels.items()))


class ReportPictures:
    """The pictures of a report. Each clip is stored once, and a video is opened once for all clips of a query.

    `thumbnails` holds them by picture id. `notes` says which pictures are missing, and why. Raises UsageError if `folder`
    is given and has no videos.
    """

    def __init__(self, features: CacheReader, folder: Path | None = None):
        self.features = features
        self.thumbnails: dict[str, Thumbnail] = {}
        self.notes: list[str] = []
        self._ids: dict[tuple[str, int], str] = {}
        self._unreadable: set[str] = set()
        try:
            self._videos: Thumbnails | None = Thumbnails(features, folder)
        except UsageError as error:
            if folder is not None:
                raise
            self._videos = None
            self.notes.append(f"No pictures: the videos are not available ({error}) Name their folder with --videos.")

    @property
    def available(self) -> bool:
        """Whether the videos are available."""
        return self._videos is not None

    def add(self, video_id: str, clips: Sequence[int]) -> dict[int, str]:
        """Adds the pictures of these clips, and returns their ids by clip; empty if the video cannot be read."""
        if self._videos is None or video_id in self._unreadable:
            return {}
        missing = sorted(clip for clip in clips if (video_id, clip) not in self._ids)
        try:
            for clip, thumbnail in zip(missing, self._videos.of_clips(video_id, missing), strict=True):
                picture_id = f"p{len(self.thumbnails)}"
                self._ids[video_id, clip] = picture_id
                self.thumbnails[picture_id] = thumbnail
        except VideoError as error:
            self._unreadable.add(video_id)
            self.notes.append(f"No pictures of {video_id}: {error}")
            return {}
        return {clip: self._ids[video_id, clip] for clip in clips}

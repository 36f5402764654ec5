"""Which clips of a video are worth a look for a query, and their pictures."""

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


def best_moments(items: Sequence[tuple[Query, Prediction]], features: CacheReader) -> dict[int | str, np.ndarray]:
    """The middle frame, uint8 [h w 3], of each query's best moment, by qid; without those whose video is not at hand."""
    found: dict[int | str, np.ndarray] = {}
    try:
        thumbnails = Thumbnails(features)
    except UsageError:
        return found
    for query, answer in items:
        if answer.windows:
            start_s, end_s, _ = answer.windows[0]
            with suppress(VideoError):  # a picture more, if there is one: what is measured does not depend on it
                (thumbnail,) = thumbnails.of(query.vid, [clip_at((start_s + end_s) / 2, query.vid, features)])
                found[query.qid] = np.asarray(Image.open(io.BytesIO(thumbnail.jpeg)).convert("RGB"))
    return found


def clip_at(second: float, video_id: str, features: CacheReader) -> int:
    """The clip that stands for this second of a video; its first or last one beyond its ends."""
    grid = features.grid(video_id)
    return min(max(int(second * grid.fps), 0), grid.clips - 1)


def clips_to_show(moments: Sequence[Moment], query: Query, features: CacheReader) -> dict[int, str]:
    """Which clips to look at and why: three of the best moment, the middle of the next two, and of the longest true one
    where no moment reaches it. Each clip once, in the order of time."""
    wanted: list[tuple[float, str]] = []
    for rank, (start_s, end_s, _) in enumerate(moments[:3], start=1):
        places = {"start of": 0.1, "middle of": 0.5, "end of": 0.9} if rank == 1 else {"": 0.5}
        wanted += [
            (start_s + share * (end_s - start_s), f"{name} moment {rank}".strip()) for name, share in places.items()
        ]
    if query.windows:
        start_s, end_s = max(query.windows, key=lambda window: window[1] - window[0])
        if not any(start_s <= second < end_s for second, _ in wanted):
            wanted.append(((start_s + end_s) / 2, "true moment, not found"))
    found: dict[int, str] = {}
    for second, label in wanted:
        found.setdefault(clip_at(second, query.vid, features), label)
    return dict(sorted(found.items()))


class Album:
    """The pictures of a report, each video read once for all that its queries want, each picture kept once.

    `there` says whether there are videos at all; `notes` what is missing and why. Raises UsageError for a `folder` that
    was asked for and holds no videos.
    """

    def __init__(self, features: CacheReader, folder: Path | None = None):
        self.features = features
        self.pictures: dict[str, Thumbnail] = {}
        self.notes: list[str] = []
        self._names: dict[tuple[str, int], str] = {}
        self._lost: set[str] = set()
        try:
            self._thumbnails: Thumbnails | None = Thumbnails(features, folder)
        except UsageError as error:
            if folder is not None:
                raise
            self._thumbnails = None
            self.notes.append(f"No pictures: the videos are not at hand ({error}) Say where they are with --videos.")

    @property
    def there(self) -> bool:
        """Whether the videos are at hand."""
        return self._thumbnails is not None

    def take(self, video_id: str, clips: Sequence[int]) -> dict[int, str]:
        """The names of the pictures of these clips; none of them where the video cannot be shown."""
        missing = sorted(clip for clip in clips if (video_id, clip) not in self._names)
        if self._thumbnails is None or video_id in self._lost:
            return {}
        try:
            for clip, thumbnail in zip(missing, self._thumbnails.of(video_id, missing), strict=True):
                name = self._names[video_id, clip] = f"p{len(self.pictures)}"
                self.pictures[name] = thumbnail
        except VideoError as error:
            self._lost.add(video_id)
            self.notes.append(f"No pictures of {video_id}: {error}")
            return {}
        return {clip: self._names[video_id, clip] for clip in clips}

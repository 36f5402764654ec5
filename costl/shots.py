"""Which clips of a video are worth a look for a query, and their pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from PIL import Image

from costl.annotations import Prediction, Query
from pipeline.cache import CacheReader
from pipeline.errors import UsageError, VideoError
from pipeline.thumbnails import Thumbnails


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

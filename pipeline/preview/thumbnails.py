"""Small pictures of a video's clips for a person to look at, and the part of each that CLIP saw."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.preprocess import Preprocess, part_seen
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.videos import content_hash, find_videos

SIDE = 224  # pixels of the longer side
QUALITY = 72


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG of `width` x `height` pixels; `seen` is (left, top, width, height) of what CLIP saw, as shares of it."""

    jpeg: bytes
    width: int
    height: int
    seen: tuple[float, float, float, float]


class Thumbnails:
    """Pictures of the videos of a cache, from the files that they were extracted from.

    `folder` is where these are; by default where they were at extraction. Raises UsageError when there are no videos.
    """

    def __init__(self, features: CacheReader, folder: Path | None = None):
        where = folder or features.videos
        if where is None:
            raise UsageError(f"{features.path}: does not say where its videos are. Say so with --videos.")
        self._features = features
        self._files = {video.id: video.path for video in find_videos(where)}
        self._preprocess = _preprocess(features.fingerprint)
        self.folder = where
        self._known: set[str] = set()

    def of(self, video_id: str, clips: Sequence[int]) -> list[Thumbnail]:
        """The frame at the centre of each of these clips, in rising order of the clips.

        Raises VideoError when the file is not there, is not the one that was extracted, or cannot be decoded.
        """
        from costl.pipeline.decode.backends import open_video  # decord: wanted only where somebody looks at pictures

        if not clips:
            return []
        path = self._file(video_id)
        centres_s = self._features.grid(video_id).centres_s()[sorted(clips)]
        with open_video(path) as video:
            return [self._thumbnail(pixels) for frames in video.sample(centres_s) for pixels in frames.pixels]

    def _file(self, video_id: str) -> Path:
        """The file of a video, known to be the one that was extracted; it is read in full once."""
        row = self._features.row(video_id)
        path = self._files.get(row.id)
        if path is None:
            raise VideoError(f"no such video in {self.folder}.")
        if row.id not in self._known and content_hash(path) != row.content_hash:
            raise VideoError(f"{path.name} is another file than the one that was extracted.")
        self._known.add(row.id)
        return path

    def _thumbnail(self, pixels: np.ndarray) -> Thumbnail:
        picture = Image.fromarray(pixels)
        seen = part_seen(picture.height, picture.width, self._preprocess) if self._preprocess else (0.0, 0.0, 1.0, 1.0)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=QUALITY, optimize=True)
        return Thumbnail(jpeg.getvalue(), picture.width, picture.height, seen)


def _preprocess(fingerprint: Mapping[str, Any]) -> Preprocess | None:
    """How the frames of these features were prepared; None where somebody else made them."""
    if "preprocess" not in fingerprint:
        return None
    settings: dict[str, Any] = json.loads(fingerprint["preprocess"])
    pairs: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return Preprocess(**pairs)

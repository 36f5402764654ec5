"""Thumbnails of a video's clips, and the part of each that CLIP gets as input."""

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
from costl.pipeline.encode.preprocess import Preprocess, visible_region
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.videos import content_hash, find_videos

MAX_SIDE = 224  # pixels of the longer side
JPEG_QUALITY = 72


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG of `width` x `height` pixels.

    `crop`: the part that CLIP gets as input, (left, top, width, height) as shares of the picture.
    """

    jpeg: bytes
    width: int
    height: int
    crop: tuple[float, float, float, float]


class Thumbnails:
    """Thumbnails of the videos of a cache, from the files that they were extracted from.

    `folder` holds these files; by default the folder of the extraction. Raises UsageError if it holds no videos.
    """

    def __init__(self, features: CacheReader, folder: Path | None = None):
        folder = folder or features.videos
        if folder is None:
            raise UsageError(f"{features.path}: does not say where its videos are. Name their folder with --videos.")
        self._features = features
        is_nested = any("/" in name for name in features.video_ids)
        self._files = {video.id: video.path for video in find_videos(folder, recursive=is_nested)}
        self._preprocess = stored_preprocess(features.fingerprint)
        self.folder = folder
        self._verified: set[str] = set()

    def of_clips(self, video_id: str, clips: Sequence[int]) -> list[Thumbnail]:
        """The frame at the centre of each of these clips, in rising order of the clips.

        Raises VideoError if the file is missing, is not the one that was extracted, or cannot be decoded.
        """
        from costl.pipeline.decode.backends import open_video  # imports decord

        if not clips:
            return []
        path = self._file(video_id)
        centres_s = self._features.grid(video_id).centres_s()[sorted(clips)]
        with open_video(path) as video:
            return [self._thumbnail(pixels) for frames in video.sample(centres_s) for pixels in frames.pixels]

    def _file(self, video_id: str) -> Path:
        """The file of a video, checked once by its content hash to be the one that was extracted."""
        row = self._features.row(video_id)
        path = self._files.get(row.id)
        if path is None:
            raise VideoError(f"no such video in {self.folder}.")
        if row.id not in self._verified and content_hash(path) != row.content_hash:
            raise VideoError(f"{path.name} is not the file that was extracted.")
        self._verified.add(row.id)
        return path

    def _thumbnail(self, pixels: np.ndarray) -> Thumbnail:
        picture = Image.fromarray(pixels)
        whole = (0.0, 0.0, 1.0, 1.0)
        crop = visible_region(picture.height, picture.width, self._preprocess) if self._preprocess else whole
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return Thumbnail(jpeg.getvalue(), picture.width, picture.height, crop)


def stored_preprocess(fingerprint: Mapping[str, Any]) -> Preprocess | None:
    """How the frames of these features were preprocessed; None for features that were imported."""
    settings = fingerprint.get("preprocess")
    return Preprocess.of(json.loads(settings)) if settings else None

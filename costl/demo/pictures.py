"""Single pictures of videos, for pages."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from costl.pipeline.errors import VideoError
from costl.pipeline.preview.cut import frames_at


def frame_jpeg(path: Path, second: float, *, height: int) -> bytes | None:
    """The JPEG of the picture at a second of a video, `height` pixels high; None for one that is gone or cannot be read."""
    try:
        (pixels,) = frames_at(path, [second], height=height)
    except (VideoError, ValueError):  # ValueError: no picture at this time
        return None
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=80)
    return jpeg.getvalue()

"""The image tower of a library, for queries by image: loaded when the first image is searched for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.reload import reload_encoder
from costl.pipeline.library.text import clip_of
from costl.pipeline.progress import ProgressCallback

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder


def load_image_encoder(features: CacheReader, *, device: str, report_progress: ProgressCallback) -> CLIPEncoder:
    """The whole CLIP that made `features`. Raises as `text.load_text_encoder` does."""
    model, weights = clip_of(features)
    return reload_encoder(
        features.fingerprint, model, weights, owner=str(features.path), device=device, report_progress=report_progress
    )

"""The text tower of a library: loaded alone, once its weights are known to be those of the features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.reload import reload_encoder
from costl.pipeline.errors import CacheError
from costl.pipeline.library.encoder_record import record_fingerprint, recorded_fingerprint
from costl.pipeline.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from costl.pipeline.encode.text_encoder import TextEncoder


def load_text_encoder(features: CacheReader, *, device: str, report_progress: ProgressCallback) -> TextEncoder:
    """The text tower of the CLIP that made `features`.

    A hash covers the weights of both towers. So the first call loads both, and later calls load the text tower alone, as long
    as the file is the same. Raises CacheError for imported features and for another CLIP, UsageError for weights that cannot
    be loaded.
    """
    model, weights = clip_of(features)
    report_progress(Progress("load", 0, 1, f"{model}, {weights}"))
    from costl.pipeline.encode.text_encoder import TextEncoder
    from costl.pipeline.encode.weights import find_source

    source = find_source(model, weights)
    known = recorded_fingerprint(model, weights, str(features.fingerprint["precision"]))
    if known is None or known["weights"] != features.fingerprint["weights"]:
        encoder = reload_encoder(
            features.fingerprint, model, weights, owner=str(features.path), device=device, report_progress=report_progress
        )
        record_fingerprint(encoder, model, weights, source.file)
    return TextEncoder(source, device=device)


def clip_of(features: CacheReader) -> tuple[str, str]:
    """The model and the weights that made `features`. Raises CacheError for imported features, which do not name them."""
    if not {"model", "weights"} <= features.source.keys():
        raise CacheError(
            f"{features.path}: does not name its CLIP, so nothing can be compared with it. Extract the videos with costl."
        )
    return features.source["model"], features.source["weights"]

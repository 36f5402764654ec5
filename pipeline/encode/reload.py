"""Loads the CLIP again that made the features of a cache, or those that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.fingerprint import explain_difference
from costl.pipeline.options import TokenFormat
from costl.pipeline.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder


def reload_encoder(
    fingerprint: Mapping[str, Any],
    model: str,
    weights: str,
    *,
    owner: str,
    device: str,
    report_progress: ProgressCallback,
) -> CLIPEncoder:
    """The CLIP of `model` and `weights`, which must be the one that made features with this `fingerprint`.

    `owner` names in messages what the features belong to. Raises UsageError for weights that cannot be loaded, and
    CacheError for those of another CLIP.
    """
    from costl.pipeline.encode.clip import load_encoder  # loads open_clip, which stored features do not need

    report_progress(Progress("load", 0, 1, f"{model}, {weights}"))
    precision = str(fingerprint["precision"])
    patches = TokenFormat.from_fields(fingerprint).has_patches
    try:
        encoder = load_encoder(model, weights, device=device, precision=precision, patches=patches)
    except UsageError as error:
        raise UsageError(f"{error} {owner} needs this CLIP: if it has moved, say where it is with --weights.") from error
    # Another release of open_clip is accepted.
    loaded = {name: value for name, value in encoder.fingerprint().items() if name != "open_clip"}
    expected = {name: fingerprint.get(name) for name in loaded}
    differences = explain_difference(expected, loaded, was="expected", now="here is")
    if differences:
        raise CacheError(
            f"{owner} needs another CLIP than {weights} ({'; '.join(differences)}). Name the one that made its features "
            "with --weights."
        )
    return encoder

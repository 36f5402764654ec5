"""The fingerprint of features for searching; which weights a file holds is remembered, so that CLIP need not be loaded for it.

USER FOLDER/encoders.json    for each model, weights and precision: the file, its stamp, and the fingerprint of the encoder
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.data_folder import ExtractSettings
from costl.pipeline.decode.backends import resolve
from costl.pipeline.device import default_precision, pick_device
from costl.pipeline.encode.names import check_names
from costl.pipeline.errors import CostlError
from costl.pipeline.feature_store import user_folder
from costl.pipeline.formats.files import publish
from costl.pipeline.options import FrameOptions
from costl.pipeline.videos import file_stamp

if TYPE_CHECKING:
    from costl.pipeline.encode.clip import CLIPEncoder

_FILE = "encoders.json"


def search_fingerprint(encoder: Mapping[str, Any], settings: ExtractSettings) -> dict[str, Any]:
    """The fingerprint of frame tokens and joint vectors by an encoder with the fingerprint `encoder`."""
    frames = FrameOptions(resolve(settings.decoder), settings.sampling).fingerprint()
    return {**encoder, **frames, **asdict(settings.token_format), "fps": float(settings.fps)}


def zero_shot_fingerprint(model: str, weights: str, *, device: str) -> dict[str, Any]:
    """The fingerprint of features by this encoder, which is loaded unless its weights are known already.

    Raises UsageError for unknown names and weights that are not here.
    """
    check_names(model, weights)
    precision = default_precision(pick_device(device).type)
    known = recorded_fingerprint(model, weights, precision)
    if known is None:
        from costl.pipeline.encode.clip import load_encoder
        from costl.pipeline.encode.weights import find_source

        encoder = load_encoder(model, weights, device=device, precision=precision, patches=False)
        record_fingerprint(encoder, model, weights, find_source(model, weights).file)
        known = encoder.fingerprint()
    return search_fingerprint(known, ExtractSettings(model=model, weights=weights, tokens="cls"))


def recorded_fingerprint(model: str, weights: str, precision: str) -> dict[str, Any] | None:
    """The `CLIPEncoder.fingerprint` of these weights; None if they were never loaded, or their file is another one now."""
    record = _read().get(_key(model, weights, precision), {})
    with suppress(KeyError, TypeError, OSError):
        if record["stamp"] == _stamp(Path(record["file"])):
            return dict(record["fingerprint"])
    return None


def record_fingerprint(encoder: CLIPEncoder, model: str, weights: str, file: Path) -> None:
    """Records that `file` holds the weights of this encoder. A folder that cannot be written costs only time."""
    key = _key(model, weights, encoder.precision)
    with suppress(CostlError, OSError):
        records = _read() | {key: {"file": str(file), "stamp": _stamp(file), "fingerprint": encoder.fingerprint()}}
        publish(user_folder() / _FILE, json.dumps(records).encode())


def _key(model: str, weights: str, precision: str) -> str:
    return json.dumps([model, weights, precision])


def _stamp(path: Path) -> list[int]:
    """The stamp of a file, or of the files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [number for file in files for number in file_stamp(file)]


def _read() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads((user_folder() / _FILE).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}

"""The text tower of a library: loaded alone, once its weights are known to be those of the features."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.reload import reload_encoder
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import file_stamp

if TYPE_CHECKING:
    from costl.pipeline.encode.text_encoder import TextEncoder

_RECORD = "encoder.json"


def load_text_encoder(features: CacheReader, folder: Path, *, device: str, report_progress: ProgressCallback) -> TextEncoder:
    """The text tower of the CLIP that made `features`.

    A hash covers the weights of both towers, so the first call loads both and records the file in `folder`. Later calls load
    the text tower alone, as long as the file is the same. Raises CacheError for imported features and for another CLIP,
    UsageError for weights that cannot be loaded.
    """
    if not {"model", "weights"} <= features.source.keys():
        raise CacheError(f"{features.path}: does not name its CLIP, so no sentence can be compared with it. Extract the videos.")
    model, weights = features.source["model"], features.source["weights"]
    report_progress(Progress("load", 0, 1, f"{model}, {weights}"))
    from costl.pipeline.encode.text_encoder import TextEncoder
    from costl.pipeline.encode.weights import find_source

    source = find_source(model, weights)
    record = {"file": str(source.file), "stamp": _stamp(source.file), "weights": features.fingerprint["weights"]}
    if _read(folder / _RECORD) != record:
        reload_encoder(
            features.fingerprint, model, weights, owner=str(features.path), device=device, report_progress=report_progress
        )
        with suppress(CostlError):  # a folder that cannot be written costs only time
            publish(folder / _RECORD, json.dumps(record).encode())
    return TextEncoder(source, device=device)


def _stamp(path: Path) -> list[int]:
    """The stamp of a file, or of the files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [number for file in files for number in file_stamp(file)]


def _read(path: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None

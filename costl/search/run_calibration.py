"""The calibration of a trained run: how often a pair of a sentence and a video with its scores is true, from validation.

RUN/calibration.json    checksum of the weights and of the ordinary sentences, and the `PairCalibration`
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float

from costl.data.annotations import Prediction, Query
from costl.data.queries import read_queries
from costl.data.wrong_videos import wrong_video_pairs
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError
from costl.pipeline.formats.files import publish
from costl.predict.loaded_run import LoadedRun, open_run
from costl.search.calibrate import PairCalibration, fit_pairs, relative_sentence

_FILE = "calibration.json"
_SPLIT = "val"


def run_calibration(run: Path, ordinary: Float[np.ndarray, "x e"], *, device: str) -> PairCalibration | None:
    """The calibration of a run, computed once and stored in its folder; None where it cannot be known.

    It needs the cache of the run, at least twenty queries in its validation split, and videos that they do not belong to.
    """
    checksum = _checksum(run, ordinary)
    stored = _read(run / _FILE, checksum)
    if stored is not None:
        return stored
    try:
        calibration = _fit(open_run(run, device=device), ordinary)
    except CostlError:  # without cache, validation split, or enough pairs
        return None
    with suppress(CostlError):
        publish(run / _FILE, json.dumps({"checksum": checksum, **asdict(calibration)}).encode())
    return calibration


def highest_level(
    features: CacheReader, vid: str, sentence: Float[np.ndarray, "e"], ordinary: Float[np.ndarray, "x e"]
) -> float:
    """The highest relative logit of a sentence in a video."""
    cosines = features.joint_vectors(vid) @ relative_sentence(sentence, ordinary)
    return float(cosines.max()) * features.joint.logit_scale


def _fit(loaded: LoadedRun, ordinary: Float[np.ndarray, "x e"]) -> PairCalibration:
    queries = read_queries(loaded.features, _SPLIT, domain=loaded.run.config.data.domain)
    true_videos: dict[str, set[str]] = defaultdict(set)
    for query in queries:
        true_videos[query.query].add(query.vid)
    pairs = [queries, wrong_video_pairs(queries, true_videos=true_videos)]
    present, absent = (_scores(loaded, kind, ordinary) for kind in pairs)
    return fit_pairs(present=present, absent=absent)


def _scores(
    loaded: LoadedRun, queries: Sequence[Query], ordinary: Float[np.ndarray, "x e"]
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """The model's best score and the level of each pair."""
    predictions = loaded.predict(queries)
    best = np.array([best_score(prediction) for prediction in predictions])
    sentences = loaded.features.words
    levels = [highest_level(loaded.features, p.vid, sentences(p.query).sentence, ordinary) for p in predictions]
    return best, np.array(levels)


def best_score(prediction: Prediction) -> float:
    """The score of the best moment, 0 without one."""
    return max((score for _, _, score in prediction.windows), default=0.0)


def _checksum(run: Path, ordinary: Float[np.ndarray, "x e"]) -> str:
    with suppress(OSError):
        return hashlib.sha256((run / "best.safetensors").read_bytes() + ordinary.tobytes()).hexdigest()
    return ""


def _read(path: Path, checksum: str) -> PairCalibration | None:
    """The stored calibration; None if it is missing, damaged, or of other weights."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["checksum"] == checksum:
            first, second, constant = map(float, content["weights"])
            return PairCalibration((first, second, constant), tuple(map(float, content["present"])))
    return None

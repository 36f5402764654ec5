"""What answers a query about a video: a trained model, or CLIP alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from costl.ask.trained_model import TrainedModel
from costl.data.annotations import Prediction, Query
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError
from costl.pipeline.library.encoder_record import zero_shot_fingerprint
from costl.pipeline.options import MODEL, WEIGHTS
from costl.pipeline.progress import ProgressCallback
from costl.predict.attention_maps import clip_attention_maps
from costl.predict.postprocess import rated_saliency
from costl.predict.predict import predict_split
from costl.search.moments import find_segments


class Predictor(Protocol):
    """Predicts moments and saliency from stored features.

    `name` is for messages. `fingerprint`: how its features are made, by the CLIP of `encoder` and `weights`. `notes` belong to
    each of its answers.
    """

    name: str
    fingerprint: Mapping[str, Any]
    encoder: str
    weights: str
    notes: tuple[str, ...]

    def predict(
        self, queries: Sequence[Query], features: CacheReader, progress: ProgressCallback | None
    ) -> list[Prediction]:
        """One prediction for each query, in the same order."""

    def patch_attention(
        self, query: Query, clips: Sequence[int], features: CacheReader
    ) -> Float[np.ndarray, "k rows columns"]:
        """The attention to the patches in each of these clips; none of a model without it."""


class TrainedPredictor:
    """Predicts with a trained model. Raises CacheError where its CLIP is not known or has moved."""

    notes: tuple[str, ...] = ()

    def __init__(self, trained: TrainedModel, weights: str | Path | None, *, device: str):
        self.name = trained.name
        self.fingerprint = trained.fingerprint
        self.encoder = trained.source.get("model") or "ViT-B-32"
        self.weights = _recorded_weights(trained) if weights is None else str(weights)
        self._config = trained.config
        self._device = pick_device(device)
        self._model = trained.model().to(self._device)

    def predict(
        self, queries: Sequence[Query], features: CacheReader, progress: ProgressCallback | None
    ) -> list[Prediction]:
        """See `Predictor`."""
        return predict_split(
            self._model, queries, features, config=self._config, device=self._device, progress=progress
        )

    def patch_attention(
        self, query: Query, clips: Sequence[int], features: CacheReader
    ) -> Float[np.ndarray, "k rows columns"]:
        """See `Predictor`."""
        if not (clips and self._model.has_attention_maps):
            return np.empty((0, *features.patch_grid), np.float32)
        maps = clip_attention_maps(self._model, query, clips, features)
        return maps.share.reshape(len(clips), *features.patch_grid)


def _recorded_weights(trained: TrainedModel) -> str:
    weights = trained.source.get("weights", "")
    checksum = str(trained.fingerprint.get("weights", ""))[:12]
    clip = f"{trained.fingerprint.get('model', 'the CLIP')}, sha256 {checksum}…"
    if not weights:
        raise CacheError(f"{trained.name}: does not say where its CLIP weights are ({clip}). Give them with --weights.")
    path = Path(weights.rpartition("=")[2])
    if path.is_absolute() and not path.exists():
        raise CacheError(
            f"{path}: the CLIP weights that {trained.name} was trained with ({clip}) are no longer there. "
            "Give their new path with --weights."
        )
    return weights




class ZeroShotPredictor:
    """Compares frames and sentences with CLIP alone; `weights` are by default those of `costl extract`."""

    encoder = MODEL

    def __init__(self, weights: str | Path | None, *, device: str):
        self.weights = str(weights or WEIGHTS)
        self.name = f"zero-shot {self.encoder}, {self.weights}"
        self.fingerprint = zero_shot_fingerprint(self.encoder, self.weights, device=device)
        self.notes = (
            f"answered by CLIP alone ({self.encoder}, {Path(self.weights).name}), without a trained model. Times are rough.",
        )

    def predict(
        self, queries: Sequence[Query], features: CacheReader, progress: ProgressCallback | None
    ) -> list[Prediction]:
        """See `Predictor`."""
        return [self._predict_one(query, features) for query in queries]

    def patch_attention(
        self, query: Query, clips: Sequence[int], features: CacheReader
    ) -> Float[np.ndarray, "k rows columns"]:
        """See `Predictor`."""
        return np.empty((0, *features.patch_grid), np.float32)

    def _predict_one(self, query: Query, features: CacheReader) -> Prediction:
        curve = features.joint_vectors(query.vid) @ features.words(query.query).sentence
        segments = find_segments(curve, logit_scale=features.joint.logit_scale)
        clip_s, end_s = 1 / features.fps, query.duration_s
        moments = tuple((min(s.start * clip_s, end_s), min(s.end * clip_s, end_s), s.score) for s in segments)
        return Prediction(query.qid, query.query, query.vid, moments, rated_saliency(curve.tolist(), query, fps=features.fps))

"""What answers a query about a video: a trained model, or CLIP alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from costl.ask.model_folder import is_run
from costl.ask.trained_model import TrainedModel
from costl.data.annotations import Prediction, Query
from costl.data.windowed_features import VideoFeatures
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError
from costl.pipeline.feature_store import FeatureStore
from costl.pipeline.library.encoder_record import zero_shot_fingerprint
from costl.pipeline.library.store_limit import DEFAULT_BYTES
from costl.pipeline.options import MODEL, WEIGHTS
from costl.pipeline.progress import ProgressCallback
from costl.predict.attention_maps import clip_attention_maps
from costl.predict.predict import predict_split
from costl.predict.zero_shot import zero_shot_prediction
from costl.search.calibrate import ZERO_SHOT_THRESHOLD, AbsentLevels, PairCalibration, relative_sentence
from costl.search.run_calibration import best_score, highest_level, run_calibration
from costl.training.run_folder import MAX_WINDOW_CLIPS


@dataclass(frozen=True)
class Presence:
    """How sure it is that a sentence is in a video, `score` in [0, 1], and the `threshold` below which it is not.

    The scores of moments are multiplied by `factor`.
    """

    score: float
    threshold: float
    factor: float = 1.0

    @property
    def is_likely(self) -> bool:
        """Whether the moments are answers."""
        return self.score >= self.threshold


class Predictor:
    """Predicts moments and saliency from stored features; the base of the classes below.

    `name` is for messages. `fingerprint`: how its features are made, by the CLIP of `encoder` and `weights`. `notes` belong to
    each of its answers. In the shapes, x are ordinary sentences and e is the width of the joint space.
    """

    name: str
    fingerprint: Mapping[str, Any]
    encoder: str
    weights: str
    notes: tuple[str, ...] = ()

    def feature_store(
        self, folder: Path, *, device: str, workers: int | None = None, max_bytes: int = DEFAULT_BYTES
    ) -> FeatureStore:
        """The store of its features in `folder`, see `FeatureStore`."""
        return FeatureStore(
            folder=folder,
            fingerprint=self.fingerprint,
            model=self.encoder,
            weights=self.weights,
            device=device,
            owner=self.name,
            workers=workers,
            max_bytes=max_bytes,
        )

    def predict(
        self, queries: Sequence[Query], features: VideoFeatures, progress: ProgressCallback | None
    ) -> list[Prediction]:
        """One prediction for each query, in the same order."""
        raise NotImplementedError

    def presence(
        self, predictions: Sequence[Prediction], features: CacheReader, ordinary: Float[np.ndarray, "x e"]
    ) -> list[Presence]:
        """For each prediction whether its sentence is in the video at all."""
        raise NotImplementedError

    def patch_attention(
        self, query: Query, clips: Sequence[int], features: CacheReader
    ) -> Float[np.ndarray, "k rows columns"]:
        """The attention to the patches in each of these clips; none of a model without it."""
        return np.empty((0, *features.patch_grid), np.float32)


class TrainedPredictor(Predictor):
    """Predicts with a trained model. Raises CacheError where its CLIP is not known or has moved."""

    def __init__(self, trained: TrainedModel, weights: str | Path | None, *, device: str):
        self.name = trained.name
        self.fingerprint = trained.fingerprint
        self.encoder = trained.source.get("model") or "ViT-B-32"
        self._config = trained.config
        self._device = pick_device(device)
        self._model = trained.model().to(self._device)
        self.weights = _recorded_weights(trained) if weights is None else str(weights)
        self._calibration: PairCalibration | None = None
        self._is_calibrated = False

    @property
    def window_clips(self) -> int:
        """The most clips that the model reads at once; longer videos are predicted in windows of this length."""
        return self._config.predict.window_clips or MAX_WINDOW_CLIPS

    def predict(
        self, queries: Sequence[Query], features: VideoFeatures, progress: ProgressCallback | None
    ) -> list[Prediction]:
        """See `Predictor`."""
        return predict_split(
            self._model, queries, features, config=self._config, device=self._device, progress=progress
        )

    def presence(
        self, predictions: Sequence[Prediction], features: CacheReader, ordinary: Float[np.ndarray, "x e"]
    ) -> list[Presence]:
        """See `Predictor`. Without a calibration every sentence counts as present."""
        calibration = self.calibration(ordinary)
        best = np.array([best_score(prediction) for prediction in predictions])
        if calibration is None:
            return [Presence(score, 0.0) for score in best.tolist()]
        scores = calibration.score(best, _highest_levels(predictions, features, ordinary))
        return [Presence(score, calibration.threshold()) for score in scores.tolist()]

    def calibration(self, ordinary: Float[np.ndarray, "x e"]) -> PairCalibration | None:
        """The calibration of the run; None where it is not known, as for an export."""
        if not self._is_calibrated:
            folder = Path(self.name)
            self._calibration = run_calibration(folder, ordinary, device=str(self._device)) if is_run(folder) else None
            self._is_calibrated = True
        return self._calibration

    def patch_attention(
        self, query: Query, clips: Sequence[int], features: CacheReader
    ) -> Float[np.ndarray, "k rows columns"]:
        """See `Predictor`."""
        if not (clips and self._model.has_attention_maps):
            return super().patch_attention(query, clips, features)
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


class ZeroShotPredictor(Predictor):
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
        self, queries: Sequence[Query], features: VideoFeatures, progress: ProgressCallback | None
    ) -> list[Prediction]:
        """See `Predictor`."""
        return [zero_shot_prediction(query, features) for query in queries]

    def presence(
        self, predictions: Sequence[Prediction], features: CacheReader, ordinary: Float[np.ndarray, "x e"]
    ) -> list[Presence]:
        """See `Predictor`."""
        scale = features.joint.logit_scale
        scores = []
        for prediction, level in zip(predictions, _highest_levels(predictions, features, ordinary), strict=True):
            frames = features.joint_vectors(prediction.vid)
            absent = AbsentLevels.of((frames @ relative_sentence(ordinary, ordinary).T).max(axis=0) * scale)
            scores.append(float(absent.score(np.array([level]))[0]))
        return [Presence(score, ZERO_SHOT_THRESHOLD, factor=score) for score in scores]


def _highest_levels(
    predictions: Sequence[Prediction], features: CacheReader, ordinary: Float[np.ndarray, "x e"]
) -> Float[np.ndarray, "b"]:
    """The highest relative logit of each sentence in its video."""
    return np.array([highest_level(features, p.vid, features.words(p.query).sentence, ordinary) for p in predictions])

"""The second tier of a search: a trained model finds the moments again in the videos that CLIP alone puts first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from costl.ask.asker import query_row
from costl.ask.predictors import TrainedPredictor
from costl.ask.trained_model import read_trained_model
from costl.data.annotations import Prediction
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.feature_store import user_folder
from costl.pipeline.progress import ProgressCallback
from costl.search.calibrate import relative_sentence
from costl.search.hits import Hit
from costl.search.moments import suppress_overlaps

THRESHOLD = 0.25  # of a run without calibration: its own scores
Candidate = tuple[str, str, Path]  # the key of a video in the cache, its name in the library, and its path
Encode = Callable[[Sequence[str]], list[SentenceTokens]]


class SecondTier:
    """A trained run, and where it finds the features with patches that it needs.

    They are those of the library where it is a cache that the run could have been trained on. Otherwise the videos are
    extracted, once, into the user's store, which takes at most `max_bytes`.
    """

    def __init__(self, run: str, features: CacheReader, *, device: str, max_bytes: int):
        trained = read_trained_model(run)
        self._features = features if dict(trained.fingerprint) == features.fingerprint else None
        weights = features.source.get("weights") if self._features else None
        self._predictor = TrainedPredictor(trained, weights, device=device)
        self.name = trained.name
        self._store = self._predictor.feature_store(user_folder(), device=device, max_bytes=max_bytes)

    def threshold(self, ordinary: Float[np.ndarray, "x e"]) -> float:
        """The score below which a moment is no answer."""
        calibration = self._predictor.calibration(ordinary)
        return THRESHOLD if calibration is None else calibration.threshold()

    def hits(
        self,
        query: str,
        videos: Sequence[Candidate],
        *,
        encode: Encode,
        ordinary: Float[np.ndarray, "x e"],
        progress: ProgressCallback,
    ) -> list[Hit]:
        """The moments of a query in `videos`, scored by the run and CLIP together, in the order of the videos.

        Of moments that overlap, only the best one is returned.
        Raises VideoError for a video that cannot be read.
        """
        hits: list[Hit] = []
        predictions = self._predictions(query, videos, encode, progress)
        for (_, name, path), (prediction, features) in zip(videos, predictions, strict=True):
            duration_s = features.grid(prediction.vid).duration_s
            spans = [(start, end) for start, end, _ in prediction.windows]
            rows = np.column_stack([np.array(spans), self._scores(prediction, features, ordinary)])
            apart = suppress_overlaps(rows, len(rows), max_overlap=0.0)
            hits += [Hit(query, name, path, duration_s, *row) for row in apart.tolist()]
        return hits

    def _predictions(
        self, query: str, videos: Sequence[Candidate], encode: Encode, progress: ProgressCallback
    ) -> list[tuple[Prediction, CacheReader]]:
        if self._features is not None:
            features = self._features.with_words({query: encode([query])[0]})
            rows = [query_row(number, query, key, features) for number, (key, _, _) in enumerate(videos)]
            return [(prediction, features) for prediction in self._predictor.predict(rows, features, progress)]
        return [self._predict_file(query, path, progress) for _, _, path in videos]

    def _predict_file(self, query: str, path: Path, progress: ProgressCallback) -> tuple[Prediction, CacheReader]:
        features, name = self._store.features(path, [query], progress=progress)
        (prediction,) = self._predictor.predict([query_row(0, query, name, features)], features, progress)
        return prediction, features

    def _scores(
        self, prediction: Prediction, features: CacheReader, ordinary: Float[np.ndarray, "x e"]
    ) -> list[float]:
        """The probability of each moment by the model's score and the level of its own clips; without calibration the score."""
        scores = np.array([score for _, _, score in prediction.windows])
        calibration = self._predictor.calibration(ordinary)
        if calibration is None:
            return scores.tolist()
        sentence = relative_sentence(features.words(prediction.query).sentence, ordinary)
        curve = features.joint_vectors(prediction.vid) @ sentence * features.joint.logit_scale
        levels = [_level(curve, start * features.fps, end * features.fps) for start, end, _ in prediction.windows]
        return calibration.score(scores, np.array(levels)).tolist()


def _level(curve: Float[np.ndarray, "t"], start: float, end: float) -> float:
    """The highest value of the clips that a moment touches; `start` and `end` are in clips."""
    first = min(int(start), len(curve) - 1)
    return float(curve[first : max(first + 1, int(np.ceil(end)))].max())

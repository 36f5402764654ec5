"""The second tier of a search: a trained model finds the moments again in the videos that CLIP alone puts first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from costl.ask.asker import query_row
from costl.ask.predictors import TrainedPredictor
from costl.ask.trained_model import read_trained_model
from costl.data.annotations import Prediction
from costl.data.windowed_features import Piece, VideoFeatures, WindowedFeatures
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import VideoError
from costl.pipeline.feature_store import user_folder
from costl.pipeline.grid import Grid
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import window_name
from costl.predict.sliding_window import window_quarters, windows_around
from costl.search.calibrate import relative_sentence
from costl.search.hits import Hit
from costl.search.moments import find_segments, suppress_overlaps
from costl.search.queries import SearchQuery

THRESHOLD = 0.25  # of a run without calibration: its own scores
WINDOWS_OF_A_VIDEO = 5  # that the model reads of a longer video, around the best segments of CLIP alone


class Candidate(NamedTuple):
    """A video that CLIP alone puts first: its `key` in the cache, its `name` in the library, and its `path`.

    `curve`: the relative cosine of the sentence with each of its clips, as the library samples them.
    """

    key: str
    name: str
    path: Path
    duration_s: float
    curve: Float[np.ndarray, "t"]


class _Grounded(NamedTuple):
    """The prediction in a video, or in a window of it that begins at `start_s`, and the features that it was made from."""

    prediction: Prediction
    start_s: float
    features: VideoFeatures


class SecondTier:
    """A trained run, and where it finds the features with patches that it needs.

    They are those of the library where it is a cache that the run could have been trained on. Otherwise they are extracted,
    once, into the user's store, which takes at most `max_bytes`.

    Of a long video the run reads only windows around the best segments of CLIP alone. They are as long as the longest video
    that it was trained on.
    """

    def __init__(self, run: str, features: CacheReader, *, device: str, max_bytes: int):
        trained = read_trained_model(run)
        self._library = features
        self._is_readable = dict(trained.fingerprint) == features.fingerprint
        is_same_clip = trained.fingerprint.get("weights") == features.fingerprint.get("weights")
        weights = features.source.get("weights") if is_same_clip else None
        self._predictor = TrainedPredictor(trained, weights, device=device)
        self.name = trained.name
        self._store = self._predictor.feature_store(user_folder(), device=device, max_bytes=max_bytes)
        self._fps = float(trained.fingerprint["fps"])

    def threshold(self, ordinary: Float[np.ndarray, "x e"]) -> float:
        """The score below which a moment is no answer."""
        calibration = self._predictor.calibration(ordinary)
        return THRESHOLD if calibration is None else calibration.threshold()

    def hits(
        self,
        query: SearchQuery,
        videos: Sequence[Candidate],
        *,
        ordinary: Float[np.ndarray, "x e"],
        progress: ProgressCallback,
    ) -> list[Hit]:
        """The moments of a query in `videos`, scored by the run and CLIP together, in the order of the videos.

        Of moments that overlap, only the best one is returned.
        Raises VideoError for a video that cannot be read.
        """
        hits: list[Hit] = []
        for video, grounded in zip(videos, self._ground(query, videos, progress), strict=True):
            rows = np.concatenate([self._moments(one, ordinary) for one in grounded])
            apart = suppress_overlaps(rows, len(rows), max_overlap=0.0)
            hits += [Hit(query.name, video.name, video.path, video.duration_s, *row) for row in apart.tolist()]
        return hits

    def _ground(
        self, query: SearchQuery, videos: Sequence[Candidate], progress: ProgressCallback
    ) -> list[list[_Grounded]]:
        """For each video its predictions, one for the video or one for each of its windows."""
        if not self._is_readable:
            return [self._ground_file(query.name, video, progress) for video in videos]
        pieces: list[list[Piece]] = []
        for video in videos:
            windows = [Piece(video.key, window) for window in self._windows(video)]
            pieces.append(windows or [_whole(self._library, video.key)])
        named = {f"{p.video} {window_name(p.clips)}": p for of_video in pieces for p in of_video}
        assert query.words is not None, "a picture has no words, and a run reads only sentences"
        features = self._library.with_words({query.name: query.words})
        windowed = WindowedFeatures(features, {name: [piece] for name, piece in named.items()})
        starts = {name: piece.clips.start for name, piece in named.items()}
        grounded = iter(self._predict(query.name, windowed, starts, progress))
        return [[next(grounded) for _ in of_video] for of_video in pieces]

    def _ground_file(self, query: str, video: Candidate, progress: ProgressCallback) -> list[_Grounded]:
        windows = self._windows(video)
        if windows:
            try:
                windowed = self._windowed_file(query, video.path, windows, progress)
                return self._predict(query, windowed, {window_name(w): w.start for w in windows}, progress)
            except VideoError as error:
                if error.status != "failed":
                    raise
                # Too much of a window is damaged, which may be little of the whole video. Otherwise the same error follows.
        features, name = self._store.features(video.path, [query], progress=progress)
        return self._predict(query, features, {name: 0}, progress)

    def _windowed_file(
        self, query: str, path: Path, windows: Sequence[range], progress: ProgressCallback
    ) -> WindowedFeatures:
        """The features of these windows, stored in quarters, so that windows of other questions share them."""
        quarters = {window: window_quarters(window, self._predictor.window_clips) for window in windows}
        distinct = sorted({quarter for of_window in quarters.values() for quarter in of_window}, key=lambda q: q.start)
        features = self._store.window_features(path, [query], distinct, progress=progress)
        names = {window_name(window): map(window_name, quarters[window]) for window in windows}
        return WindowedFeatures(features, {window: [_whole(features, q) for q in names[window]] for window in names})

    def _predict(
        self, query: str, features: VideoFeatures, starts: Mapping[str, int], progress: ProgressCallback
    ) -> list[_Grounded]:
        """The predictions in these videos of `features`, which begin at these clips of the videos of the library."""
        rows = [query_row(number, query, name, features) for number, name in enumerate(starts)]
        predictions = self._predictor.predict(rows, features, progress)
        starts_s = [start / self._fps for start in starts.values()]
        return [_Grounded(*one, features) for one in zip(predictions, starts_s, strict=True)]

    def _windows(self, video: Candidate) -> list[range]:
        """The windows around the best segments of a long video, in order; none for a video that is read as a whole."""
        clips = Grid(self._fps, video.duration_s).clips
        size = self._predictor.window_clips
        if clips <= WINDOWS_OF_A_VIDEO * size:
            return []
        scale = self._library.joint.logit_scale
        segments = find_segments(video.curve, logit_scale=scale, limit=WINDOWS_OF_A_VIDEO, max_overlap=0.0)
        middles = [(segment.start + segment.end) / 2 / self._library.fps * self._fps for segment in segments]
        return windows_around(middles, clips, size)

    def _moments(self, one: _Grounded, ordinary: Float[np.ndarray, "x e"]) -> Float[np.ndarray, "m 3"]:
        """Start, end (seconds of the video) and score of each moment."""
        spans_s = np.array([(start, end) for start, end, _ in one.prediction.windows])
        return np.column_stack([spans_s + one.start_s, self._scores(one.prediction, one.features, ordinary)])

    def _scores(
        self, prediction: Prediction, features: VideoFeatures, ordinary: Float[np.ndarray, "x e"]
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


def _whole(features: CacheReader, video: str) -> Piece:
    return Piece(video, range(features.row(video).clips))


def _level(curve: Float[np.ndarray, "t"], start: float, end: float) -> float:
    """The highest value of the clips that a moment touches; `start` and `end` are in clips."""
    first = min(int(start), len(curve) - 1)
    return float(curve[first : max(first + 1, int(np.ceil(end)))].max())

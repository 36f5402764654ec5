"""Answers queries about raw videos: features come from the code of extraction, predictions from that of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from costl.ask.answer import Answer, Moment, Saliency, check_queries, clip_spans
from costl.ask.model_folder import ZERO_SHOT, model_or_zero_shot
from costl.ask.predictors import Predictor, TrainedPredictor, ZeroShotPredictor
from costl.ask.trained_model import read_trained_model
from costl.data.annotations import Query
from costl.data.windowed_features import VideoFeatures
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.feature_store import FeatureStore, user_folder
from costl.pipeline.formats.files import as_path
from costl.pipeline.formats.strict_json import abbreviated
from costl.pipeline.preview.thumbnails import stored_preprocess, visible_region
from costl.pipeline.progress import ProgressCallback
from costl.search.ordinary import ordinary_vectors


def load(
    model: Path | str | None = None,
    *,
    weights: Path | str | None = None,
    cache_dir: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Asker:
    """Loads a trained model: a run folder (by default the newest in `runs/`), an exported folder, or hf://user/name.

    Where there is no run, or for the model "none", CLIP answers alone (zero-shot), that of `costl extract`'s defaults.
    `weights` is the path of the model's CLIP, if it has moved. `cache_dir` is the folder for the features of videos, by
    default the user's cache folder. `workers` is the number of decode processes. Raises UsageError if the model does not
    exist or an argument is wrong, CacheError if the model is damaged.
    """
    chosen = model_or_zero_shot(model)
    predictor: Predictor
    if chosen == ZERO_SHOT:
        predictor = ZeroShotPredictor(weights, device=device)
    else:
        predictor = TrainedPredictor(read_trained_model(chosen), weights, device=device)
    folder = user_folder() if cache_dir is None else as_path("cache_dir", cache_dir)
    return Asker(predictor, predictor.feature_store(folder, device=device, workers=workers))


@dataclass(frozen=True)
class PatchAttention:
    """The attention of the coarse step to the patches of the clip with its centre at `centre_s`; `weights` sum to 1."""

    centre_s: float
    weights: Float[np.ndarray, "rows columns"]


class Asker:
    """Answers queries with a trained model, or with CLIP alone; `load` makes it. Several threads may share one."""

    def __init__(self, predictor: Predictor, feature_store: FeatureStore):
        self.name = predictor.name
        self._predictor = predictor
        self._preprocess = stored_preprocess(predictor.fingerprint)
        self._feature_store = feature_store

    def ask(
        self, video: Path | str, queries: str | Sequence[str], *, progress: ProgressCallback | None = None
    ) -> list[Answer]:
        """One answer for each query, in the same order.

        Decodes a video only once, even if its file is renamed. A new query about the same video only needs its words
        encoded. Raises VideoError for a file that is not a readable video, UsageError for a query without words,
        CacheError if the CLIP weights differ from those of the model.
        """
        path = as_path("video", video)
        texts: list[Any] = [queries]
        if not isinstance(queries, str | bytes):
            with suppress(TypeError):  # a single value, which `check_queries` refuses
                texts = list(queries)
        check_queries(texts)
        features, name = self._feature_store.features(path, texts, progress=progress)
        query_rows = [query_row(i, text, name, features) for i, text in enumerate(texts)]
        predictions = self._predictor.predict(query_rows, features, progress)
        presences = self._predictor.presence(predictions, features, self._ordinary_vectors(progress))
        answers = []
        for query, prediction, presence in zip(query_rows, predictions, presences, strict=True):
            moments = tuple(Moment(start, end, score * presence.factor) for start, end, score in prediction.windows)
            answer = Answer(
                query=query.query,
                video=path,
                duration_s=query.duration_s,
                moments=moments if presence.is_likely else (),
                below=() if presence.is_likely else moments,
                confidence=presence.score,
                saliency=Saliency(1 / features.fps, prediction.saliency),
                notes=(*self._predictor.notes, *_notes(query.query, features)),
            )
            answers.append(answer)
        return answers

    def _ordinary_vectors(self, progress: ProgressCallback | None) -> Float[np.ndarray, "x e"]:
        store = self._feature_store
        encode = partial(store.sentence_vectors, progress=progress)
        return ordinary_vectors(store.folder.parent, store.fingerprint, encode)

    def patch_attention(self, video: Path | str, query: str, times_s: Sequence[float]) -> list[PatchAttention]:
        """The attention of the coarse step in the clips at these seconds, for one query; empty for a model without it.

        Raises UsageError for times that are not seconds from 0 to the end of the video, and otherwise as `ask` does.
        """
        check_queries([query])
        features, name = self._feature_store.features(as_path("video", video), [query])
        grid = features.grid(name)
        try:
            seconds = list(times_s)
            inside = all(isinstance(second, Real) and 0 <= second <= grid.duration_s for second in seconds)
        except TypeError:
            inside = False
        if not inside:
            found = " ".join(abbreviated(times_s).split())
            raise UsageError(f"times_s is {found}, expected a list of seconds from 0 to {grid.duration_s:g} (the end).")
        clips = [min(int(second * grid.fps), grid.clips - 1) for second in seconds]
        weights = self._predictor.patch_attention(Query(0, query, name, grid.duration_s), clips, features)
        centres_s = grid.centres_s()[clips][: len(weights)]
        return [PatchAttention(float(second), map_) for second, map_ in zip(centres_s, weights, strict=True)]

    def visible_region(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The region of a frame of this size that the patches cover: (left, top, width, height) as shares of the frame.

        It is smaller than the frame if CLIP gets a centre crop, and larger if CLIP gets a padded frame.
        """
        if not all(isinstance(side, Integral) and side > 0 for side in (height, width)):
            raise UsageError(f"height and width are {height!r} and {width!r}, expected pixels, 1 or more.")
        assert self._preprocess is not None  # the feature store refuses a model of other features
        return visible_region(int(height), int(width), self._preprocess)


def query_row(number: int, text: str, name: str, features: VideoFeatures) -> Query:
    """The query as an annotation row. `rated_s` asks for the saliency of every clip, whatever its length."""
    grid = features.grid(name)
    spans = clip_spans(grid.clips, grid.clip_s, grid.duration_s)
    return Query(number, text, name, grid.duration_s, rated_s=spans)


def _notes(query: str, features: CacheReader) -> tuple[str, ...]:
    if features.words(query).truncated:
        return ("the query is longer than CLIP can read, so its end was ignored.",)
    return ()

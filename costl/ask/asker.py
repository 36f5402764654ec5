"""Answers queries about raw videos: features come from the code of extraction, predictions from that of evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from costl.ask.answer import Answer, Moment, Saliency, check_queries
from costl.ask.hub import HUB, fetch
from costl.ask.trained_model import TrainedModel, read_trained_model
from costl.data.annotations import Query
from costl.data.batch import collate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError
from costl.pipeline.feature_store import FeatureStore, user_folder
from costl.pipeline.progress import ProgressCallback
from costl.predict.attention_maps import batch_attention_maps, has_attention_maps
from costl.predict.predict import predict_split
from costl.predict.sliding_window import WindowFeatures


def load(
    model: Path | str | None = None,
    *,
    weights: str | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Asker:
    """Loads a trained model: a run folder (by default the newest in `runs/`), an exported folder, or hf://user/name.

    `weights` is the path of the model's CLIP, if it has moved. `cache_dir` is the folder for the features of videos, by
    default the user's cache folder. `workers` is the number of decode processes. Raises UsageError if the model does not
    exist, CacheError if it is damaged.
    """
    folder = fetch(model) if isinstance(model, str) and model.startswith(HUB) else model
    trained = read_trained_model(None if folder is None else Path(folder))
    return Asker(trained, weights=weights, cache_dir=cache_dir, device=device, workers=workers)


@dataclass(frozen=True)
class PatchAttention:
    """Step one's attention to the patches of the clip with its centre at `centre_s`: `weights` sum to 1.

    `preprocess` says how the frame was resized for CLIP.
    """

    centre_s: float
    weights: Float[np.ndarray, "rows columns"]
    preprocess: Mapping[str, Any]

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The area that the patches cover in a frame of this size, in pixels: top, left, bottom, right.

        It is smaller than the frame if CLIP got a centre crop, and larger if CLIP got a padded frame.
        """
        mode = self.preprocess.get("resize_mode", "shortest")
        input_height, input_width = self.preprocess["size"]
        if mode == "squash":
            return 0.0, 0.0, float(height), float(width)
        pick = max if mode == "longest" else min
        scale = pick(height / input_height, width / input_width)
        box_height = input_height * scale
        box_width = input_width * scale
        return (height - box_height) / 2, (width - box_width) / 2, (height + box_height) / 2, (width + box_width) / 2


class Asker:
    """Answers queries with a trained model; `load` makes it. Several threads may share one."""

    def __init__(
        self, trained: TrainedModel, *, weights: str | None, cache_dir: Path | None, device: str, workers: int | None
    ):
        self.name = trained.name
        self._config = trained.config
        self._device = pick_device(device)
        self._model = trained.model().to(self._device)
        self._preprocess = json.loads(trained.fingerprint.get("preprocess", "{}"))
        self._feature_store = FeatureStore(
            cache_dir or user_folder(),
            fingerprint=trained.fingerprint,
            model=trained.source.get("model") or "ViT-B-32",
            weights=weights or _recorded_weights(trained),
            device=device,
            owner=trained.name,
            workers=workers,
        )

    def ask(
        self, video: Path | str, queries: str | Sequence[str], *, progress: ProgressCallback | None = None
    ) -> list[Answer]:
        """One answer for each query, in the same order.

        Decodes a video only once, even if its file is renamed. A new query about the same video only needs its words
        encoded. Raises VideoError for a file that is not a readable video, UsageError for a query without words,
        CacheError if the CLIP weights differ from those of the model.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        check_queries(texts)
        path = Path(video)
        features, name = self._feature_store.features(path, texts, progress=progress)
        query_rows = [_query_row(i, text, name, features) for i, text in enumerate(texts)]
        predictions = predict_split(
            self._model, query_rows, features, config=self._config, device=self._device, progress=progress
        )
        duration_s = features.row(name).duration_s
        return [
            Answer(
                query=query.query,
                video=path,
                duration_s=duration_s,
                moments=tuple(Moment(*window) for window in prediction.windows),
                saliency=Saliency(1 / features.fps, prediction.saliency),
                notes=_notes(query.query, features),
            )
            for query, prediction in zip(query_rows, predictions, strict=True)
        ]

    def patch_attention(self, video: Path | str, query: str, times_s: Sequence[float]) -> list[PatchAttention]:
        """Step one's attention in the clips at these times, for one query; empty for a model without step one."""
        if not has_attention_maps(self._model):
            return []
        features, name = self._feature_store.features(Path(video), [query])
        grid = features.grid(name)
        centres_s = grid.centres_s()
        attention = []
        for second in times_s:
            clip = min(int(second * features.fps), grid.clips - 1)
            # The spatial encoder treats every frame independently, so one clip gives the same as the whole video.
            window = WindowFeatures(features, range(clip, clip + 1))
            batch = collate([Query(0, query, name, 1 / features.fps)], window, patches=True)
            (maps,) = batch_attention_maps(self._model, batch)
            weights = maps.share[0].reshape(features.patch_grid)
            attention.append(PatchAttention(float(centres_s[clip]), weights, self._preprocess))
        return attention


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


def _query_row(number: int, text: str, name: str, features: CacheReader) -> Query:
    """The query as an annotation row. `rated_s` asks for the saliency of every clip, whatever its length."""
    grid = features.grid(name)
    edges = [min(i / grid.fps, grid.duration_s) for i in range(grid.clips)] + [grid.duration_s]
    return Query(number, text, name, grid.duration_s, rated_s=tuple(pairwise(edges)))


def _notes(query: str, features: CacheReader) -> tuple[str, ...]:
    if features.words(query).truncated:
        return ("the query is longer than CLIP can read, so its end was ignored.",)
    return ()

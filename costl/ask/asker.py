"""The one bridge from raw videos to answers: features by the code of extraction, predictions by that of evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from costl.ask.answer import Answer, Moment, Saliency, check_queries
from costl.ask.export import HUB, fetch
from costl.ask.trained_model import Trained, read_trained
from costl.data.annotations import Query
from costl.data.batch import collate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.pipeline.feature_store import Kept, user_folder
from costl.pipeline.progress import Tell
from costl.predict.attention_maps import has_maps, looks
from costl.predict.predict import predict_split
from costl.predict.sliding_window import WindowOf
from costl.training.precision import pick_device


def load(
    where: Path | str | None = None,
    *,
    weights: str | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Asker:
    """A trained model to ask: the folder of a run (by default the newest in `runs/`) or of an export, or hf://user/name.

    `weights` says where its CLIP is now, if not where it was; `cache_dir` where features of asked videos are kept (by
    default the user's cache folder); `workers` decode processes. Raises UsageError for what cannot be found, CacheError
    for what is damaged.
    """
    folder = fetch(where) if isinstance(where, str) and where.startswith(HUB) else where
    trained = read_trained(None if folder is None else Path(folder))
    return Asker(trained, weights=weights, cache_dir=cache_dir, device=device, workers=workers)


@dataclass(frozen=True)
class Look:
    """Where step one looked in the clip at `at_s`: its share of every patch, [rows columns], sums to 1.

    `preprocess` says how CLIP was shown the frame.
    """

    at_s: float
    share: np.ndarray
    preprocess: Mapping[str, Any]

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of a frame of this size that the patches cover, in its pixels: top, left, bottom, right.

        Less than the frame where its ends were cut away, more where it was padded.
        """
        mode = self.preprocess.get("resize_mode", "shortest")
        seen_height, seen_width = self.preprocess["size"]
        if mode == "squash":
            return 0.0, 0.0, float(height), float(width)
        pick = max if mode == "longest" else min
        scale = pick(height / seen_height, width / seen_width)
        high, wide = seen_height * scale, seen_width * scale
        return (height - high) / 2, (width - wide) / 2, (height + high) / 2, (width + wide) / 2


class Asker:
    """A trained model and what it takes to ask it; made by `load`. Threads may share it."""

    def __init__(
        self, trained: Trained, *, weights: str | None, cache_dir: Path | None, device: str, workers: int | None
    ):
        self.name = trained.name
        self._config = trained.config
        self._device = pick_device(device)
        self._model = trained.model().to(self._device)
        self._preprocess = json.loads(trained.fingerprint.get("preprocess", "{}"))
        self._kept = Kept(
            cache_dir or user_folder(),
            fingerprint=trained.fingerprint,
            model=trained.source.get("model") or "ViT-B-32",
            weights=weights or _recorded_weights(trained),
            device=device,
            owner=trained.name,
            workers=workers,
        )

    def ask(self, video: Path | str, queries: str | Sequence[str], *, progress: Tell | None = None) -> list[Answer]:
        """An answer for each query, in their order.

        A video is decoded once, whatever it is asked and whatever its file is called; the words of a new query are all
        that is encoded later. Raises VideoError for a file that cannot be used, UsageError for a query without words,
        CacheError where the CLIP at hand is not the one of the model.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        check_queries(texts)
        path = Path(video)
        features, name = self._kept.features(path, texts, progress=progress)
        asked = [_query(i, text, name, features) for i, text in enumerate(texts)]
        found = predict_split(self._model, asked, features, config=self._config, device=self._device, progress=progress)
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
            for query, prediction in zip(asked, found, strict=True)
        ]

    def looks(self, video: Path | str, query: str, at_s: Sequence[float]) -> list[Look]:
        """Where the model looked for a query in the clips at these seconds; empty for a model without step one."""
        if not has_maps(self._model):
            return []
        features, name = self._kept.features(Path(video), [query])
        grid, shape = features.grid(name), features.patch_grid
        found = []
        for second in at_s:
            clip = min(int(second * features.fps), grid.clips - 1)
            # What a frame shows is seen independently of the others: one clip says the same as the whole video.
            batch = collate(
                [Query(0, query, name, 1 / features.fps)], WindowOf(features, range(clip, clip + 1)), patches=True
            )
            (seen,) = looks(self._model, batch)
            found.append(Look(float(grid.centres_s()[clip]), seen.share[0].reshape(shape), self._preprocess))
        return found


def _recorded_weights(trained: Trained) -> str:
    weights = trained.source.get("weights", "")
    made_of = str(trained.fingerprint.get("weights", ""))[:12]
    what = f"{trained.fingerprint.get('model', 'the CLIP')}, sha256 {made_of}…"
    if not weights:
        raise CacheError(f"{trained.name}: does not say where its CLIP weights are ({what}). Give them with --weights.")
    path = Path(weights.rpartition("=")[2])
    if path.is_absolute() and not path.exists():
        raise CacheError(
            f"{path}: the CLIP weights that {trained.name} was trained with ({what}) are not there any more. "
            "Say where they are with --weights."
        )
    return weights


def _query(number: int, text: str, name: str, features: CacheReader) -> Query:
    """The query; saliency is wanted for every clip as it is, not for two seconds each."""
    grid = features.grid(name)
    edges = [min(i / grid.fps, grid.duration_s) for i in range(grid.clips)] + [grid.duration_s]
    return Query(number, text, name, grid.duration_s, rated_s=tuple(pairwise(edges)))


def _notes(query: str, features: CacheReader) -> tuple[str, ...]:
    cut = features.words(query).truncated
    return ("the query is longer than CLIP reads, its end was not heard.",) if cut else ()

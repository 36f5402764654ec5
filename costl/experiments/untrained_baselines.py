"""Baselines without training: chance, and zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costl.config import Config
from costl.data.annotations import RATED_CLIP_S, Prediction, Query
from costl.data.queries import read_queries
from costl.experiments.tables import BySplit, Numbers
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.formats.annotations import expected_clips
from costl.predict.zero_shot import zero_shot_prediction

MOMENTS = 10
DRAWS = 20


def untrained_baselines(
    features: CacheReader, splits: Sequence[str], config: Config
) -> tuple[dict[str, BySplit], list[str]]:
    """The headline numbers (percent) of each baseline by split, in a list of one entry, and a sentence about each.

    Zero-shot CLIP is left out where frames and sentences share no space. Benchmark and domain are those of `config`.
    """
    scores: dict[str, BySplit] = {"chance": {split: [chance(features, split, config)] for split in splits}}
    notes = [
        "chance: windows as long as the training split's, at random places, and random saliency; "
        f"mean of {DRAWS} draws."
    ]
    if features.joint.is_known:
        scores["zero-shot CLIP"] = {split: [zero_shot(features, split, config)] for split in splits}
        notes.append("zero-shot CLIP: segments of the similarity of frames and sentence, without settings to choose.")
    return scores, notes


def chance(features: CacheReader, split: str, config: Config) -> Numbers:
    """Ten windows a query at random positions, with lengths drawn from the training split, and random saliency.

    The numbers are means over twenty draws. Raises UsageError for a split that is missing or has no labels.
    """
    queries = read_queries(features, split, domain=config.data.domain)
    lengths_s = np.array([end - start for query in read_queries(features, "train") for start, end in query.windows])
    rng = np.random.default_rng(0)
    draws = [
        _score([_random_prediction(query, lengths_s, rng) for query in queries], queries, config) for _ in range(DRAWS)
    ]
    return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}


def zero_shot(features: CacheReader, split: str, config: Config) -> Numbers:
    """The numbers of frozen CLIP, which nothing was tuned for.

    Raises UsageError for a split that is missing or has no labels.
    """
    queries = read_queries(features, split, domain=config.data.domain)
    predictions = [zero_shot_prediction(query, features) for query in queries if query.vid in features.video_ids]
    return _score(predictions, queries, config)


def _score(predictions: Sequence[Prediction], queries: Sequence[Query], config: Config) -> Numbers:
    return compute_metrics(predictions, queries, benchmark=config.data.benchmark)["brief"]


def _random_prediction(query: Query, lengths_s: np.ndarray, rng: np.random.Generator) -> Prediction:
    saliency = rng.random(expected_clips(query, RATED_CLIP_S))
    count = MOMENTS if len(lengths_s) else 0
    length = np.minimum(rng.choice(lengths_s, count), query.duration_s)
    start = rng.random(count) * (query.duration_s - length)
    scores = -np.sort(-rng.random(count))
    windows = tuple(zip(start.tolist(), (start + length).tolist(), scores.tolist(), strict=True))
    return Prediction(query.qid, query.query, query.vid, windows, tuple(saliency.tolist()))

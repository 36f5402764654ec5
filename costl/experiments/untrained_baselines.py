"""Baselines without training: chance, and zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from costl.config import Config
from costl.data.annotations import RATED_CLIP_S, Moment, Prediction, Query
from costl.data.queries import read_queries
from costl.experiments.tables import BySplit, Numbers
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.formats.annotations import expected_clips
from costl.predict.postprocess import rated_saliency

MOMENTS = 10
DRAWS = 20
SMOOTHINGS = (0.0, 0.5, 1.0, 2.0)
LEVELS = ((0.5,), (0.7,), (0.3, 0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.7, 0.8, 0.9))


@dataclass(frozen=True)
class ZeroShot:
    """The settings of zero-shot CLIP: `smoothing` is the sigma of a Gaussian in clips; moments are the runs of clips above
    each of `levels`, where 0 is the lowest similarity in the video and 1 the highest."""

    smoothing: float = 0.0
    levels: tuple[float, ...] = LEVELS[-1]


def untrained_baselines(
    features: CacheReader, splits: Sequence[str], config: Config
) -> tuple[dict[str, BySplit], list[str]]:
    """The headline numbers (percent) of each baseline by split, in a list of one entry, and a sentence about each.

    Zero-shot CLIP is left out where frames and sentences share no space. Benchmark, domain and
    the metric that chooses the settings of zero-shot CLIP are those of `config`.
    """
    scores: dict[str, BySplit] = {"chance": {split: [chance(features, split, config)] for split in splits}}
    notes = [
        "chance: windows as long as the training split's, at random places, and random saliency; "
        f"mean of {DRAWS} draws."
    ]
    if features.joint.is_known:
        settings, how = choose_zero_shot(features, config)
        scores["zero-shot CLIP"] = {split: zero_shot(features, split, config, settings) for split in splits}
        notes.append(f"zero-shot CLIP: {how}.")
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


def choose_zero_shot(features: CacheReader, config: Config) -> tuple[ZeroShot, str]:
    """The settings with the highest `train.select` on validation, and a description; the defaults without `val`."""
    if "val" not in features.splits:
        return ZeroShot(), "default smoothing and levels: there is no validation split to choose them on"
    candidates = [ZeroShot(*pair) for pair in product(SMOOTHINGS, LEVELS)]
    select = config.train.select
    # Training refuses a metric that the labels do not give.
    scores = [numbers.get(select, 0.0) for numbers in zero_shot(features, "val", config, *candidates)]
    best = candidates[int(np.argmax(scores))]
    levels = ", ".join(map(str, best.levels))
    how = f"smoothing {best.smoothing} clips and levels {levels}, the best of {len(scores)} by {select} on validation"
    return best, how


def zero_shot(features: CacheReader, split: str, config: Config, *settings: ZeroShot) -> list[Numbers]:
    """The numbers of frozen CLIP for each of `settings`.

    Saliency is the cosine between each frame and the sentence in the joint space. Moments are runs of high saliency: the curve is
    smoothed and cut at several levels. The score of a moment is the difference between its mean and that of the rest of the
    video, times the square root of its length: the signal-to-noise ratio of that difference.
    """
    queries = read_queries(features, split, domain=config.data.domain)
    vids = {query.vid for query in queries} & set(features.video_ids)
    frames = {vid: features.joint_vectors(vid) for vid in vids}
    curves = [(q, frames[q.vid] @ features.words(q.query).sentence) for q in queries if q.vid in vids]
    return [
        _score([zero_shot_prediction(query, curve, features.fps, one) for query, curve in curves], queries, config)
        for one in settings
    ]


def zero_shot_prediction(query: Query, curve: np.ndarray, fps: float, settings: ZeroShot) -> Prediction:
    """Moments and saliency from a similarity curve [t] at `fps` clips a second."""
    smooth = _smoothed(curve, settings.smoothing)
    spans = {span for level in settings.levels for span in _runs_above(smooth, level)}
    ranked = sorted((_moment(span, curve, fps, query.duration_s) for span in spans), key=lambda m: (-m[2], m))
    moments = tuple(moment for moment in ranked if moment[0] < moment[1])[:MOMENTS]
    saliency = rated_saliency(smooth.tolist(), query, fps=fps)
    return Prediction(query.qid, query.query, query.vid, moments, saliency)


def _score(predictions: Sequence[Prediction], queries: Sequence[Query], config: Config) -> Numbers:
    return compute_metrics(predictions, queries, benchmark=config.data.benchmark)["brief"]


def _smoothed(curve: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean over neighbours, without padding at the ends."""
    if sigma == 0:
        return curve
    distance = np.arange(len(curve))[:, None] - np.arange(len(curve))
    weights = np.exp(-0.5 * np.square(distance / sigma))
    return weights @ curve / weights.sum(axis=1)


def _runs_above(curve: np.ndarray, level: float) -> list[tuple[int, int]]:
    """Runs of clips [first, last + 1) at or above `level`, relative to the lowest and highest value of the curve."""
    above = curve >= curve.min() + level * np.ptp(curve)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _moment(span: tuple[int, int], curve: np.ndarray, fps: float, duration_s: float) -> Moment:
    first, end = span
    rest = np.concatenate([curve[:first], curve[end:]])
    contrast = curve[first:end].mean() - (rest.mean() if len(rest) else curve.mean())
    return min(first / fps, duration_s), min(end / fps, duration_s), float(contrast * np.sqrt(end - first))


def _random_prediction(query: Query, lengths_s: np.ndarray, rng: np.random.Generator) -> Prediction:
    saliency = rng.random(expected_clips(query, RATED_CLIP_S))
    count = MOMENTS if len(lengths_s) else 0
    length = np.minimum(rng.choice(lengths_s, count), query.duration_s)
    start = rng.random(count) * (query.duration_s - length)
    scores = -np.sort(-rng.random(count))
    windows = tuple(zip(start.tolist(), (start + length).tolist(), scores.tolist(), strict=True))
    return Prediction(query.qid, query.query, query.vid, windows, tuple(saliency.tolist()))

"""References for a trained model: chance, and zero-shot CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from costl.data.annotations import RATED_CLIP_S, Moment, Prediction, Query
from costl.data.batch import non_finite_message
from costl.data.queries import read_queries
from costl.metrics.compute import compute_metrics
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.grid import Grid
from costl.predict.postprocess import rated_saliency

MOMENTS = 10
DRAWS = 20
SMOOTHINGS = (0.0, 0.5, 1.0, 2.0)
LEVELS = ((0.5,), (0.7,), (0.3, 0.4, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 0.8, 0.9), (0.6, 0.7, 0.8, 0.9))


@dataclass(frozen=True)
class Reference:
    """A row of a table: `brief` has the headline numbers (percent) as `compute_metrics` names them, `how` the method."""

    name: str
    brief: Mapping[str, float]
    how: str


@dataclass(frozen=True)
class ZeroShot:
    """The two settings of zero-shot CLIP: `smoothing` is the sigma of a Gaussian in clips; moments are the runs of clips
    above each of `levels`, where 0 is the lowest similarity in the video and 1 the highest."""

    smoothing: float = 0.0
    levels: tuple[float, ...] = LEVELS[-1]


def chance(features: CacheReader, split: str, *, seed: int = 0) -> Reference:
    """Ten windows a query at random positions, with lengths drawn from the training split, and random saliency.

    The numbers are means over twenty draws. Raises UsageError for a split that is missing or has no labels.
    """
    queries = read_queries(features, split)
    lengths_s = np.array([end - start for query in read_queries(features, "train") for start, end in query.windows])
    rng = np.random.default_rng(seed)
    briefs = []
    for _ in range(DRAWS):
        predictions = [_random_prediction(query, lengths_s, rng) for query in queries]
        briefs.append(compute_metrics(predictions, queries)["brief"])
    how = f"windows as long as the training split's, at random places, and random saliency; mean of {DRAWS} draws"
    return Reference("chance", {name: float(np.mean([b[name] for b in briefs])) for name in briefs[0]}, how)


def zero_shot(features: CacheReader, split: str, settings: ZeroShot, how: str = "") -> Reference:
    """Frozen CLIP: saliency is the cosine between each frame's token and the sentence; moments are runs of high saliency.

    The curve is smoothed and cut at several levels. The score of a moment is the difference between its mean and that of
    the rest of the video, times the square root of its length: the signal-to-noise ratio of that difference.
    """
    queries = read_queries(features, split)
    predictions = [
        zero_shot_prediction(query, curve, features.fps, settings) for query, curve in _curves(queries, features)
    ]
    return Reference("zero-shot CLIP", compute_metrics(predictions, queries)["brief"], how)


def choose_zero_shot(features: CacheReader, *, select: str = "MR-full-mAP") -> tuple[ZeroShot, str]:
    """The settings with the highest `select` on validation, and a description of the choice; the defaults without `val`."""
    if "val" not in features.splits:
        return ZeroShot(), "default smoothing and levels: there is no validation split to choose them on"
    queries = read_queries(features, "val")
    curves = list(_curves(queries, features))
    scores = {}
    for settings in (ZeroShot(*pair) for pair in product(SMOOTHINGS, LEVELS)):
        predictions = [zero_shot_prediction(query, curve, features.fps, settings) for query, curve in curves]
        brief = compute_metrics(predictions, queries)["brief"]
        if select not in brief:
            raise UsageError(f"{select!r} is not a number that the labels of 'val' give. Choose one of {', '.join(brief)}.")
        scores[settings] = brief[select]
    best = max(scores, key=lambda settings: scores[settings])
    levels = ", ".join(map(str, best.levels))
    how = f"smoothing {best.smoothing} clips and levels {levels}, the best of {len(scores)} by {select} on validation"
    return best, how


def zero_shot_prediction(query: Query, curve: np.ndarray, fps: float, settings: ZeroShot) -> Prediction:
    """Moments and saliency from a similarity curve [t] at `fps` clips a second."""
    smooth = _smoothed(curve, settings.smoothing)
    spans = {span for level in settings.levels for span in _runs_above(smooth, level)}
    ranked = sorted((_moment(span, curve, fps, query.duration_s) for span in spans), key=lambda m: (-m[2], m))
    moments = tuple(moment for moment in ranked if moment[0] < moment[1])[:MOMENTS]
    saliency = rated_saliency(smooth.tolist(), query, fps=fps)
    return Prediction(query.qid, query.query, query.vid, moments, saliency)


def _curves(queries: Sequence[Query], features: CacheReader) -> Iterator[tuple[Query, np.ndarray]]:
    """Each query whose video has features, with the cosine [t] of its sentence to every frame."""
    if not features.joint.is_known:
        raise UsageError(
            f"{features.path}: has no projection of frames into the space of sentences, so that there is no zero-shot CLIP. "
            "Import CLIP's own features with costl data import --joint."
        )
    frames: dict[str, np.ndarray] = {}
    known = set(features.video_ids)
    for query in queries:
        if query.vid in known:
            if query.vid not in frames:
                frames[query.vid] = projected = features.joint.project(features.tokens(query.vid, patches=False)[:, 0])
                if not np.isfinite(projected).all():
                    raise CacheError(non_finite_message(query.vid, int((~np.isfinite(projected)).any(1).argmax())))
            yield query, frames[query.vid] @ features.words(query.query).sentence


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
    saliency = rng.random(Grid(1 / RATED_CLIP_S, query.duration_s).clips)
    if not len(lengths_s):
        return Prediction(query.qid, query.query, query.vid, (), tuple(saliency.tolist()))
    length = np.minimum(rng.choice(lengths_s, MOMENTS), query.duration_s)
    start = rng.random(MOMENTS) * (query.duration_s - length)
    scores = -np.sort(-rng.random(MOMENTS))
    windows = tuple(zip(start.tolist(), (start + length).tolist(), scores.tolist(), strict=True))
    return Prediction(query.qid, query.query, query.vid, windows, tuple(saliency.tolist()))

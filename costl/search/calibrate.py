"""Scores in [0, 1] with a stated meaning, comparable between sentences and videos, and thresholds for "it is not in here".

Axes: x ordinary sentences, e joint space, n clips, m moments, b pairs of a sentence and a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jaxtyping import Float

from costl.pipeline.errors import UsageError

ZERO_SHOT_THRESHOLD = 0.9  # one in ten absent sentences or pictures passes it
LOST = 0.03  # share of true pairs that a threshold may lose, unless the caller states another
IMAGE_SCALE = 0.5  # of the logit scale: cosines of two pictures differ more than those of a sentence and a picture
MIN_PAIRS = 20  # of each kind: fewer do not determine three numbers
RIDGE = 1e-3
NEWTON_STEPS = 50


def ordinary_sentences() -> tuple[str, ...]:
    """The sentences about everyday things that come with CoSTL, in the order of the file."""
    text = files("costl.search").joinpath("sentences.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def relative_sentence(sentence: Float[np.ndarray, "... e"], ordinary: Float[np.ndarray, "x e"]) -> Float[np.ndarray, "... e"]:
    """A sentence's vector minus the mean of ordinary ones.

    Its inner product with a clip is the cosine of the sentence minus the mean cosine of ordinary sentences, so that clips
    which resemble every sentence lose their advantage. It takes the place of the sentence in scans and in `find_segments`.
    """
    return sentence - ordinary.mean(axis=0)


@dataclass(frozen=True)
class AbsentLevels:
    """The distribution of the level that a sentence reaches in a library although nothing in it fits: a Gumbel law.

    A level is the highest relative logit (relative cosine times `logit_scale`) over clips. The Gumbel law is the limit of
    maxima. `location` and `scale` are in logits.
    """

    location: float
    scale: float

    @classmethod
    def of(cls, levels: Float[np.ndarray, "x"]) -> AbsentLevels:
        """The law with the median and the lower quartile of `levels`, which ordinary sentences reach in this library.

        The upper half is ignored: some of these sentences may be true in it. Raises UsageError for fewer than MIN_PAIRS
        levels, and for non-finite ones.
        """
        if len(levels) < MIN_PAIRS or not np.isfinite(levels).all():
            raise UsageError(f"There are {len(levels)} levels of ordinary sentences; expected at least {MIN_PAIRS}, all finite.")
        quartile, median = np.quantile(levels.astype(np.float64), [0.25, 0.5])
        # The quantile p of a Gumbel law is location - scale * log(-log(p)).
        unit_quartile, unit_median = -np.log(-np.log([0.25, 0.5]))
        scale = max((median - quartile) / (unit_median - unit_quartile), 1e-6)
        return cls(float(median - scale * unit_median), float(scale))

    def score(self, levels: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        """The share of absent sentences whose best moment in this library reaches less than each level."""
        exponents = -(np.asarray(levels, np.float64) - self.location) / self.scale
        return np.exp(-np.exp(exponents.clip(max=700)))


@dataclass(frozen=True)
class ElsewhereLevels:
    """The levels that pictures of a library reach in those of its videos that they are not from, rising.

    A level is the highest cosine with a clip times `logit_scale`, so it is between -logit_scale and logit_scale.
    """

    levels: Float[np.ndarray, "x"]
    logit_scale: float

    def score(self, levels: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        """The share of such pictures that reach less than each level, interpolated, so that no two levels have the same score.

        A picture of a new video, drawn as those of the library were, scores at least 1 - p with probability p (conformal
        prediction). Without any level the score is (1 + cosine) / 2.
        """
        known = np.concatenate([[-self.logit_scale], np.sort(self.levels), [self.logit_scale]])
        return np.interp(levels, known, np.linspace(0, 1, len(known)))


@dataclass(frozen=True)
class PairCalibration:
    """How likely a pair of a sentence and a video is true, by a trained model and by the encoder together.

    `weights` are those of the logit of the model's best score, of the level, and of 1. `present` has the scores of true pairs
    that were not trained on, rising.
    """

    weights: tuple[float, float, float]
    present: tuple[float, ...]

    def score(self, best: Float[np.ndarray, "b"], levels: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b"]:
        """Probabilities of a true pair, were as many pairs true as not.

        `best` are the model's best scores in [0, 1]; `levels` the highest relative logits of the videos.
        """
        return _sigmoid(_features(best, levels) @ np.array(self.weights))

    def threshold(self, lost: float = LOST) -> float:
        """The score below which a pair is refused, so that a new true pair is refused with probability `lost` at most.

        This holds on average over calibration sets, if true pairs are drawn like those of `present` (split conformal
        prediction). It is 0 where there are too few of them. Raises UsageError if `lost` is not between 0 and 1.
        """
        if not 0 <= lost < 1:
            raise UsageError(f"The share of true moments that may be lost is {lost}; expected at least 0 and below 1.")
        refused = int(np.floor(lost * (len(self.present) + 1)))
        return self.present[refused - 1] if refused else 0.0


def fit_pairs(
    *,
    present: tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]],
    absent: tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]],
) -> PairCalibration:
    """Logistic regression on (best scores, levels) of true pairs and of others, which need not all be false.

    Both kinds have the same total weight. The pairs must not be those of the training split, on which a model is more certain.
    Raises UsageError for fewer than MIN_PAIRS pairs of a kind.
    """
    fewest = min(len(present[0]), len(absent[0]))
    if fewest < MIN_PAIRS:
        raise UsageError(f"There are {fewest} pairs to calibrate scores on; expected at least {MIN_PAIRS} of each kind.")
    features = [_features(*present), _features(*absent)]
    weights = _logistic_regression(features[0], features[1])
    scores = np.sort(_sigmoid(features[0] @ weights))
    first, second, constant = weights.tolist()
    return PairCalibration((first, second, constant), tuple(scores.tolist()))


def auroc(present: Sequence[float] | np.ndarray, absent: Sequence[float] | np.ndarray) -> float:
    """The probability that a present one scores higher than an absent one; a tie counts half. NaN if a list is empty."""
    low = np.sort(np.asarray(absent, np.float64))
    high = np.asarray(present, np.float64)
    if not len(low) or not len(high):
        return float("nan")
    wins = np.searchsorted(low, high, side="left") + np.searchsorted(low, high, side="right")
    return float(wins.mean() / (2 * len(low)))


def _features(best: Float[np.ndarray, "b"], levels: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b 3"]:
    clipped = np.asarray(best, np.float64).clip(1e-6, 1 - 1e-6)
    return np.stack([np.log(clipped / (1 - clipped)), np.asarray(levels, np.float64), np.ones(len(clipped))], axis=1)


def _sigmoid(logits: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b"]:
    return 1 / (1 + np.exp(-logits.clip(-700, 700)))


def _logistic_regression(present: Float[np.ndarray, "b f"], absent: Float[np.ndarray, "b f"]) -> Float[np.ndarray, "f"]:
    """The weights with the least mean log loss of both kinds plus a small ridge, by Newton's method."""
    features = np.concatenate([present, absent])
    is_present = np.repeat([1.0, 0.0], [len(present), len(absent)])
    share = np.repeat([0.5 / len(present), 0.5 / len(absent)], [len(present), len(absent)])
    centre = share @ features[:, :-1]
    spread = np.sqrt(share @ (features[:, :-1] - centre) ** 2) + 1e-9
    scaled = np.concatenate([(features[:, :-1] - centre) / spread, features[:, -1:]], axis=1)
    weights = np.zeros(features.shape[1])
    ridge = RIDGE * np.eye(len(weights))
    for _ in range(NEWTON_STEPS):
        probability = _sigmoid(scaled @ weights)
        gradient = scaled.T @ (share * (probability - is_present)) + ridge @ weights
        curvature = (scaled.T * (share * probability * (1 - probability))) @ scaled + ridge
        weights = weights - np.linalg.solve(curvature, gradient)
    slopes = weights[:-1] / spread
    return np.append(slopes, weights[-1] - slopes @ centre)

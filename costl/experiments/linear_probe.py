"""Linear probes: ridge regression from tokens to an answer about an object of a given colour and shape.

Axes: n questions, f features of a token, k values of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Kind = tuple[str, str]  # colour and shape
ALL = ""  # the attribute of every object
STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # of the ridge, as shares of the mean diagonal of the kernel
DEFAULT_STRENGTH = 0.01


@dataclass(frozen=True)
class LinearProbe:
    """A linear map for all objects, one for each colour and one for each shape. The answer about an object is the sum of
    the three that apply to it.

    `weights` [attribute f k] and `bias` [attribute k] apply to tokens minus their `mean` [f]. A colour or shape without
    training questions contributes nothing.
    """

    attributes: tuple[str, ...]
    mean: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, tokens: np.ndarray, kinds: Sequence[Kind]) -> np.ndarray:
        """Answers [n k] from tokens [n f] about objects of these kinds."""
        by_attribute = (tokens - self.mean) @ self.weights + self.bias[:, None]  # [attribute n k]
        has_attribute = _attribute_mask(kinds, self.attributes)
        return np.where(has_attribute.T[:, :, None], by_attribute, 0).sum(0)


def fit_probe(
    tokens: np.ndarray, kinds: Sequence[Kind], answers: np.ndarray, *, held_out: np.ndarray | None = None
) -> LinearProbe:
    """Kernel ridge regression in closed form from tokens [n f] to answers [n k].

    The kernel is (x . x' + 1) (1 + same colour + same shape) of tokens that are centred and scaled to a mean square of one,
    which equals ridge regression on the weights of `LinearProbe`. The strength of the ridge is the one with the smallest
    error on the questions of `held_out` (bool [n]) when it is fitted to the others, or DEFAULT_STRENGTH without them.
    """
    attributes = (ALL, *sorted({part for kind in kinds for part in kind}))
    mean = tokens.mean(0)
    centred = tokens - mean
    scale = float(np.square(centred).sum(1).mean()) or 1.0
    has_attribute = _attribute_mask(kinds, attributes).astype(np.float64)
    kernel = (centred @ centred.T / scale + 1.0).astype(np.float64) * (has_attribute @ has_attribute.T)
    strength = DEFAULT_STRENGTH
    if held_out is not None and 0 < held_out.sum() < len(held_out):
        strength = _best_strength(kernel, answers, held_out)
    by_attribute = has_attribute[:, :, None] * _solve_ridge(kernel, answers, strength)[:, None]  # [n attribute k]
    weights = np.stack([centred.T @ by_attribute[:, a].astype(centred.dtype) for a in range(len(attributes))]) / scale
    return LinearProbe(attributes, mean, weights, by_attribute.sum(0))


def _best_strength(kernel: np.ndarray, answers: np.ndarray, held_out: np.ndarray) -> float:
    """The strength in STRENGTHS with the smallest error on the held-out questions."""
    fitted = ~held_out

    def error(strength: float) -> float:
        coefficients = _solve_ridge(kernel[np.ix_(fitted, fitted)], answers[fitted], strength)
        predicted = kernel[np.ix_(held_out, fitted)] @ coefficients
        return float(np.square(predicted - answers[held_out]).mean())

    return min(STRENGTHS, key=error)


def _solve_ridge(kernel: np.ndarray, answers: np.ndarray, strength: float) -> np.ndarray:
    ridge = strength * np.trace(kernel) / len(kernel)
    return np.linalg.solve(kernel + ridge * np.eye(len(kernel)), answers)


def _attribute_mask(kinds: Sequence[Kind], attributes: Sequence[str]) -> np.ndarray:
    """bool [n attribute], True where the kind has the attribute."""
    return np.array([[attribute in (ALL, *kind) for attribute in attributes] for kind in kinds])

"""Linear readers: ridge regression from tokens to an answer about a thing of a given colour and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Kind = tuple[str, str]  # colour and shape
ALL = ""  # the attribute of every thing
STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # of ridge, as shares of the kernel's mean diagonal
MIDDLING = 0.01


@dataclass(frozen=True)
class Reader:
    """A linear map for all things, one for each colour and one for each shape; a thing is read by the sum of its three.

    `weights` [attribute f k], `bias` [attribute k], of tokens less their `mean` [f]. A colour or shape that no question
    named while it learned says nothing.
    """

    attributes: tuple[str, ...]
    mean: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def read(self, tokens: np.ndarray, kinds: Sequence[Kind]) -> np.ndarray:
        """Answers [n k] of tokens [n f] about things of these kinds."""
        centred, out = tokens - self.mean, np.zeros((len(tokens), self.bias.shape[1]))
        which = _members(kinds, self.attributes)
        for number in np.flatnonzero(which.any(0)):
            rows = np.flatnonzero(which[:, number])
            out[rows] += centred[rows] @ self.weights[number] + self.bias[number]
        return out


def learn(
    tokens: np.ndarray, kinds: Sequence[Kind], answers: np.ndarray, *, held_out: np.ndarray | None = None
) -> Reader:
    """Kernel ridge regression, in closed form: tokens [n f], answers [n k].

    The kernel is (x . x' + 1) (1 + same colour + same shape), tokens less their mean and scaled to a mean square of one,
    which is the same as ridge regression on the weights of `Reader`. Its strength is the one that answers the questions of
    `held_out` (bool [n]) best when they are not learned from, or a middling one without them.
    """
    attributes = (ALL, *sorted({part for kind in kinds for part in kind}))
    mean = tokens.mean(0)
    centred = tokens - mean
    scale = float(np.square(centred).sum(1).mean()) or 1.0
    which = _members(kinds, attributes).astype(np.float64)
    kernel = (centred @ centred.T / scale + 1.0).astype(np.float64) * (which @ which.T)
    strength = MIDDLING
    if held_out is not None and 0 < held_out.sum() < len(held_out):
        strength = _best_strength(kernel, answers, held_out)
    by_attribute = which[:, :, None] * _solved(kernel, answers, strength)[:, None]  # n attribute k
    weights = np.stack([centred.T @ by_attribute[:, a].astype(centred.dtype) for a in range(len(attributes))]) / scale
    return Reader(attributes, mean, weights, by_attribute.sum(0))


def _best_strength(kernel: np.ndarray, answers: np.ndarray, held_out: np.ndarray) -> float:
    rest = ~held_out

    def error(strength: float) -> float:
        said = kernel[np.ix_(held_out, rest)] @ _solved(kernel[np.ix_(rest, rest)], answers[rest], strength)
        return float(np.square(said - answers[held_out]).mean())

    return min(STRENGTHS, key=error)


def _solved(kernel: np.ndarray, answers: np.ndarray, strength: float) -> np.ndarray:
    ridge = strength * np.trace(kernel) / len(kernel)
    return np.linalg.solve(kernel + ridge * np.eye(len(kernel)), answers)


def _members(kinds: Sequence[Kind], attributes: Sequence[str]) -> np.ndarray:
    """[n attribute], True where a kind has it."""
    return np.array([[attribute in (ALL, *kind) for attribute in attributes] for kind in kinds]).reshape(len(kinds), -1)

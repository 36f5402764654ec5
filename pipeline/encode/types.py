"""What an encoder gives, in numpy: the features of frames, the tokens of a sentence, and the joint space of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from costl.pipeline.errors import CostlError


@dataclass(frozen=True)
class SentenceTokens:
    """The tokens of one sentence: `tokens` float16 [l 2*ct], and `sentence` float32 [e] of length one in the joint space.

    Each token is the word's own embedding, then the output of the last text block before the final norm (of a text tower of
    transformers its last hidden state), both of width ct. Special tokens and padding are left out. Published features hold
    the second half only; the first half is then zeros. `truncated`: the sentence was longer than the text tower reads, and
    lost its end. `texts`: the text of each token, with a space at the end of a complete word; empty if it is not known.
    Raises CostlError for other shapes or non-finite values.
    """

    tokens: np.ndarray
    sentence: np.ndarray
    truncated: bool = False
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("words", self.tokens, dtype=np.float16, ndim=2)
        _check("sentence", self.sentence, dtype=np.float32, ndim=1)
        if self.texts and len(self.texts) != len(self.tokens):
            raise CostlError(f"words: {len(self.texts)} texts for {len(self.tokens)} tokens, expected one each.")


class FrameFeatures(NamedTuple):
    """What the image tower gives for some frames.

    `tokens`: float16 [n 1+p c], the frame token and then the patches row by row, as the last block or stage leaves them.
    `joint`: float16 [n e], the frame's own feature in the joint space, of length one.
    """

    tokens: np.ndarray
    joint: np.ndarray


@dataclass(frozen=True)
class JointSpace:
    """The space of `width` e in which an encoder compares frames and sentences.

    `logit_scale` (already exponentiated) and `logit_bias` turn a cosine into the logit of its training; the bias is that of
    a sigmoid loss, else 0. Where `is_known` is False, frames and sentences share no space, and every similarity is zero.
    Raises CostlError for impossible values.
    """

    width: int
    logit_scale: float
    logit_bias: float = 0.0
    is_known: bool = True

    def __post_init__(self) -> None:
        scale, bias = self.logit_scale, self.logit_bias
        if not (self.width > 0 and math.isfinite(scale) and scale > 0 and math.isfinite(bias)):
            raise CostlError(
                f"joint space: width {self.width}, scale {scale}, bias {bias}; expected a width and a finite scale above "
                "zero, and a finite bias."
            )


@dataclass(frozen=True)
class TokenProjection:
    """From a frame token to its joint vector, for parts of format 1, which store no joint vectors. All float32.

    `norm_weight` [c], `norm_bias` [c] and `norm_eps`: the tower's last LayerNorm. `projection` [c e]. If `normed` is False
    there is no LayerNorm: the tokens already hold joint vectors, and the projection only selects them. Raises CostlError
    when the sizes disagree.
    """

    norm_weight: np.ndarray
    norm_bias: np.ndarray
    norm_eps: float
    projection: np.ndarray
    normed: bool = True

    def __post_init__(self) -> None:
        _check("joint norm weight", self.norm_weight, dtype=np.float32, ndim=1)
        _check("joint norm bias", self.norm_bias, dtype=np.float32, ndim=1)
        _check("joint projection", self.projection, dtype=np.float32, ndim=2)
        widths = [len(self.norm_weight), len(self.norm_bias), len(self.projection)]
        if len(set(widths)) > 1:
            raise CostlError(f"joint tensors of widths {widths}, expected one width.")
        if not 0 < self.norm_eps < 1:
            raise CostlError(f"joint space: epsilon {self.norm_eps}, expected one between 0 and 1.")

    def project(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [... c] -> joint vectors float32 [... e] of length one: LayerNorm, projection, L2 norm."""
        x = np.asarray(tokens, dtype=np.float32)
        return unit_length((self._norm(x) if self.normed else x) @ self.projection)

    def _norm(self, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(np.square(centred), axis=-1, keepdims=True)
        return centred / np.sqrt(variance + self.norm_eps) * self.norm_weight + self.norm_bias


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors [... e] with length one, float32; a vector of zeros stays as it is."""
    values = np.asarray(vectors, dtype=np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)


def _check(name: str, array: np.ndarray, *, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise CostlError(f"{name}: {array.dtype} with {array.ndim} axes, expected {np.dtype(dtype)} with {ndim}.")
    if not np.isfinite(array).all():
        raise CostlError(f"{name}: not finite. The weights are damaged or overflow; try another precision.")

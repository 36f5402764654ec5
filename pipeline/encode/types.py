"""What CLIP gives besides visual tokens, in numpy: the tokens of a sentence, and the map into the joint space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from costl.pipeline.errors import CostlError


@dataclass(frozen=True)
class SentenceTokens:
    """The tokens of one sentence: `tokens` float16 [l 2*ct], and `sentence` float32 [e] of length one in the joint space.

    Each token is the word's own embedding, then the output of the last text block before the final norm, both of width ct.
    Start, end and padding are left out. Published features hold the second half only; the first half is then zeros.
    `truncated`: the sentence was longer than CLIP's context and lost its end. `texts`: the text of each token, with a space
    at the end of a complete word; empty if it is not known. Raises CostlError for other shapes or non-finite values.
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


@dataclass(frozen=True)
class JointSpace:
    """The float32 tensors that map a visual token into the joint space, which it shares with sentences.

    `norm_weight` [c], `norm_bias` [c] and `norm_eps`: the tower's last LayerNorm. `projection` [c e]. `logit_scale`: the
    temperature CLIP was trained with, already exponentiated. If `normed` is False there is no LayerNorm: the tokens already
    hold joint-space features, and the projection only selects them. A projection of zeros means that the joint space is
    unknown (`is_known` is False); every similarity is then zero. Raises CostlError when the sizes disagree.
    """

    norm_weight: np.ndarray
    norm_bias: np.ndarray
    norm_eps: float
    projection: np.ndarray
    logit_scale: float
    normed: bool = True

    def __post_init__(self) -> None:
        _check("joint norm weight", self.norm_weight, dtype=np.float32, ndim=1)
        _check("joint norm bias", self.norm_bias, dtype=np.float32, ndim=1)
        _check("joint projection", self.projection, dtype=np.float32, ndim=2)
        widths = [len(self.norm_weight), len(self.norm_bias), len(self.projection)]
        if len(set(widths)) > 1:
            raise CostlError(f"joint tensors of widths {widths}, expected one width.")
        if not (0 < self.norm_eps < 1 and math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise CostlError(
                f"joint space: epsilon {self.norm_eps}, scale {self.logit_scale}; expected an epsilon between 0 and 1 and "
                "a finite scale above zero."
            )

    @property
    def is_known(self) -> bool:
        """Whether visual tokens and sentences can be compared."""
        return bool(self.projection.any())

    def project(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [... c] -> joint-space features float32 [... e] of length one: LayerNorm, projection, L2 norm."""
        x = np.asarray(tokens, dtype=np.float32)
        features = (self._norm(x) if self.normed else x) @ self.projection
        return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)

    def _norm(self, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(np.square(centred), axis=-1, keepdims=True)
        return centred / np.sqrt(variance + self.norm_eps) * self.norm_weight + self.norm_bias


def _check(name: str, array: np.ndarray, *, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise CostlError(f"{name}: {array.dtype} with {array.ndim} axes, expected {np.dtype(dtype)} with {ndim}.")
    if not np.isfinite(array).all():
        raise CostlError(f"{name}: not finite. The weights are damaged or overflow; try another precision.")

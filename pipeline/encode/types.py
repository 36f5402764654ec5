"""What CLIP leaves behind, as plain numpy: the words of a sentence and the map into the joint space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from costl.pipeline.errors import CostlError


def _check(name: str, array: np.ndarray, *, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise CostlError(f"{name}: {array.dtype} with {array.ndim} axes, expected {np.dtype(dtype)} with {ndim}.")
    if not np.isfinite(array).all():
        raise CostlError(f"{name}: not finite. The weights are damaged or overflow; try another precision.")


@dataclass(frozen=True)
class Words:
    """One sentence: `tokens` float16 [l 2*ct], `sentence` float32 [e], unit length, joint space.

    A token is the word's own embedding, then what the last text block makes of it, before the final norm.
    They run from the first word to the last, without start, end and padding. Published features hold the second half
    alone: the first is zeros then. `truncated` says that the sentence was longer than the tower's context and lost its
    end. `texts` names each token, a space at the end of a word that is whole; empty where nobody can name them. Raises
    CostlError for other shapes or non-finite values.
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
class Joint:
    """The few tensors that carry a visual token into the space shared with sentences, all float32.

    `norm_weight` [c], `norm_bias` [c], `norm_eps`: the tower's last LayerNorm; `projection` [c e]; `logit_scale`: the
    temperature CLIP was trained with, already exponentiated. Without `normed` no LayerNorm comes first: the tokens hold
    joint-space features already, and the projection only picks them. A projection of zeros says that nothing is known
    of a joint space (`known` is False): every similarity is zero. Raises CostlError when the sizes disagree.
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
                f"joint space: epsilon {self.norm_eps}, scale {self.logit_scale}; expected small ones above zero."
            )

    @property
    def known(self) -> bool:
        """Whether visual tokens and sentences can be compared at all."""
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

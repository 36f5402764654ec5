"""Tokens as int8: each channel standardised over the video, then each token scaled by its own largest value.

A token x [c] is kept as q [c] = round(z / s) with z = (x - mean) / std and s = max |z| / 127, so that no value comes back
further than s/2 · std away (and the rounding of float16). Frame tokens and patches are standardised apart: they live in
different places of CLIP's space, and the one frame token would drown among its patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from costl.pipeline.errors import VideoError

_LEVELS = 127
_BLOCK = 1 << 22  # bytes in float32 that are worked on at once, whatever the length of the video
_CACHED = 1 << 18  # and when they are read: what stays in a core's cache
_LARGEST = 65504.0  # float16
# A float32 times this has the exponent bits that a float16 of the same value has, subnormal ones too.
_REBIAS = np.float32(2.0**-112)


def blocks(shape: tuple[int, ...], *, size: int = _BLOCK) -> Iterator[slice]:
    """Runs of clips that together take about `size` bytes in float32."""
    step = max(1, size // (4 * int(np.prod(shape[1:]))))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def channels_of(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel of float16 [t 1+p c], float32 [2 c]: frame tokens, then patches.

    Without patches [1 c]. One pass in bounded memory; a channel that never changes has a deviation of exactly zero.
    Raises VideoError for values that are not finite.
    """
    clips, count, channels = tokens.shape
    groups = [slice(0, 1), slice(1, count)][: 1 if count == 1 else 2]
    total, squares = np.zeros((2, len(groups), channels))
    for place in blocks(tokens.shape):
        block = tokens[place].astype(np.float32)
        for i, group in enumerate(groups):
            rows = block[:, group].reshape(-1, channels)
            total[i] += rows.sum(0, dtype=np.float64)
            squares[i] += np.square(rows).sum(0, dtype=np.float64)  # squares of float16 are exact in float32
    if not np.isfinite(squares).all():
        raise VideoError("tokens that are not finite cannot be kept as int8. Try --precision fp32 or bf16.")
    counts = clips * np.array([group.stop - group.start for group in groups])[:, None]
    mean = total / counts
    variance = np.maximum(squares / counts - np.square(mean), 0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def quantise(tokens: np.ndarray, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float16 [t 1+p c] -> int8 of the same shape and a scale for each token, float32 [t 1+p]."""
    mean, std = per_token(mean, tokens.shape[1]), per_token(std, tokens.shape[1])
    z = tokens.astype(np.float32)
    z -= mean
    z /= np.where(std > 0, std, 1)
    scales = np.abs(z).max(axis=-1) / np.float32(_LEVELS)
    z /= np.where(scales > 0, scales, 1)[..., None]
    return np.rint(z).astype(np.int8), scales


def restore(quantised: np.ndarray, scales: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The way back: int8 [t 1+p c] with scales [t 1+p] -> float16. Also of the first tokens of every clip alone."""
    count = quantised.shape[1]
    mean, std = per_token(mean, count), per_token(std, count)
    # Rounding may carry the largest value beyond float16; nearly never, so that it is looked at once.
    beyond = bool((np.abs(mean) + _LEVELS * scales.max(initial=0) * std >= _LARGEST).any())
    mean, std = mean * _REBIAS, std * _REBIAS
    out = np.empty(quantised.shape, np.uint16)
    for place in blocks(quantised.shape, size=_CACHED):
        values = np.multiply(quantised[place], std, dtype=np.float32)
        values *= scales[place][..., None]
        values += mean
        if beyond:
            np.clip(values, -_LARGEST * _REBIAS, _LARGEST * _REBIAS, out=values)
        out[place] = _half(values)
    return out.view(np.float16)


def per_token(channels: np.ndarray, count: int) -> np.ndarray:
    """[1|2 c] -> [count c]: the first row for the frame token, the last for every patch."""
    return channels[np.minimum(np.arange(count), len(channels) - 1)]


def _half(values: np.ndarray) -> np.ndarray:
    """The bits of float16 (to the nearest, ties to even) of float32 values times _REBIAS; uses `values` up.

    numpy's own conversion takes three times as long: it works on one value after the other.
    """
    bits = values.view(np.int32)
    rounded = bits >> 13
    rounded &= 1
    rounded += 0xFFF
    rounded += bits
    np.right_shift(rounded, 13, out=bits)
    bits &= 0x7FFF
    rounded >>= 16
    rounded &= 0x8000  # the sign
    bits |= rounded
    return bits

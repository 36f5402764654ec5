"""Tokens as int8: each channel is standardised over the video, then each token is scaled by its own largest value.

A token x [c] is stored as q [c] = round(z / s), with z = (x - mean) / std and s = max |z| / 127. No value changes by more
than s/2 · std (and the rounding of float16). Frame tokens and patches have statistics of their own: they lie in different
regions of CLIP's space, and a single frame token would hardly count among its many patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from costl.pipeline.errors import VideoError

_LEVELS = 127
_BLOCK_BYTES = 1 << 22  # in float32, processed at once, however long the video is
_READ_BLOCK_BYTES = 1 << 18  # the same when tokens are read: what fits into the cache of a core
_FLOAT16_MAX = 65504.0
# A float32 times this factor has the exponent bits of the float16 with the same value, subnormal ones too.
_REBIAS = np.float32(2.0**-112)


def clip_blocks(shape: tuple[int, ...], *, size: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Slices of the first axis, each of about `size` bytes in float32 and at least one clip."""
    step = max(1, size // (4 * int(np.prod(shape[1:]))))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def channel_statistics(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel of float16 [t 1+p c], each float32 [2 c]: frame tokens, then patches.

    Without patches [1 c]. One pass in bounded memory; the deviation of a constant channel is exactly zero. Raises
    VideoError for non-finite values.
    """
    clips, count, channels = tokens.shape
    groups = [slice(0, 1), slice(1, count)][: 1 if count == 1 else 2]
    sums = np.zeros((len(groups), channels))
    square_sums = np.zeros((len(groups), channels))
    for block_clips in clip_blocks(tokens.shape):
        block = tokens[block_clips].astype(np.float32)
        for i, group in enumerate(groups):
            rows = block[:, group].reshape(-1, channels)
            sums[i] += rows.sum(0, dtype=np.float64)
            square_sums[i] += np.square(rows).sum(0, dtype=np.float64)  # squares of float16 are exact in float32
    if not np.isfinite(square_sums).all():
        raise VideoError("tokens that are not finite cannot be kept as int8. Try --precision fp32 or bf16.")
    counts = clips * np.array([group.stop - group.start for group in groups])[:, None]
    mean = sums / counts
    variance = np.maximum(square_sums / counts - np.square(mean), 0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def quantise(tokens: np.ndarray, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float16 [t 1+p c] as int8 of the same shape, with a scale for each token, float32 [t 1+p]."""
    count = tokens.shape[1]
    mean = expand_to_tokens(mean, count)
    std = expand_to_tokens(std, count)
    z = tokens.astype(np.float32)
    z -= mean
    z /= np.where(std > 0, std, 1)
    scales = np.abs(z).max(axis=-1) / np.float32(_LEVELS)
    z /= np.where(scales > 0, scales, 1)[..., None]
    return np.rint(z).astype(np.int8), scales


def dequantise(quantised: np.ndarray, scales: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The inverse: int8 [t n c] with scales [t n] as float16 [t n c], of the first n = 1 or 1+p tokens of every clip."""
    count = quantised.shape[1]
    mean = expand_to_tokens(mean, count)
    std = expand_to_tokens(std, count)
    # Rounding may push the largest value out of float16's range. It hardly ever does, so one bound is checked for all.
    largest = np.abs(mean) + _LEVELS * scales.max(initial=0) * std
    may_overflow = bool((largest >= _FLOAT16_MAX).any())
    mean = mean * _REBIAS
    std = std * _REBIAS
    out = np.empty(quantised.shape, np.uint16)
    for clips in clip_blocks(quantised.shape, size=_READ_BLOCK_BYTES):
        values = np.multiply(quantised[clips], std, dtype=np.float32)
        values *= scales[clips][..., None]
        values += mean
        if may_overflow:
            np.clip(values, -_FLOAT16_MAX * _REBIAS, _FLOAT16_MAX * _REBIAS, out=values)
        out[clips] = _float16_bits(values)
    return out.view(np.float16)


def expand_to_tokens(statistic: np.ndarray, count: int) -> np.ndarray:
    """[1|2 c] as [count c]: the first row for the frame token, the last for every patch."""
    return statistic[np.minimum(np.arange(count), len(statistic) - 1)]


def _float16_bits(values: np.ndarray) -> np.ndarray:
    """The float16 bits (rounded to nearest, ties to even) of float32 values times _REBIAS; overwrites `values`.

    numpy's own conversion takes three times as long, since it is not vectorised.
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

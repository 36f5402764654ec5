"""How sure a number is: bootstrap intervals over queries and the sign-flip test, for many numbers at once.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals; Pesarin and Salmaso,
Permutation Tests for Complex Data (2010), sign flips of paired differences.

Axes: b queries, n numbers, r resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

RESAMPLES = 2_000
FLIPS = 10_000
LEVEL = 0.95
SEED = 0
# Up to this many queries the test is exact: it goes through every pattern of signs.
EXACT_UP_TO = 13
# How many counts or signs are in memory at once.
BLOCK = 4_000_000

Interval = tuple[float, float]


def bootstrap_intervals(
    values: Mapping[str, np.ndarray], *, groups: Sequence[str] = (), resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """The 95 % percentile interval of the mean of each array [b] over its queries that are not NaN.

    All arrays are resampled together. With `groups` [b] every resample has as many queries of each group as the data,
    provided that each group has at least two. An array with fewer than two values has no interval.
    """
    usable = {name: array for name, array in values.items() if np.count_nonzero(~np.isnan(array)) > 1}
    if not usable:
        return {}
    table = np.stack(list(usable.values()), axis=1)  # [b n]
    mask = ~np.isnan(table)
    means = []
    for counts in resampled_counts(groups, len(table), resamples=resamples):
        with np.errstate(invalid="ignore"):  # NaN where a resample has no value
            means.append(counts @ np.where(mask, table, 0.0) / (counts @ mask))
    low, high = percentile_interval(np.concatenate(means))
    return {name: (float(a), float(b)) for name, a, b in zip(usable, low, high, strict=True)}


def resampled_counts(groups: Sequence[str], count: int, *, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each of `count` queries occurs in each resample [r b], in blocks; `groups` as for `bootstrap_intervals`."""
    strata = _strata(groups, count)
    rng = np.random.default_rng(SEED)
    step = max(1, BLOCK // count)
    for start in range(0, resamples, step):
        block = min(step, resamples - start)
        counts = np.zeros((block, count))
        for rows in strata:
            drawn = rng.integers(0, len(rows), (block, len(rows))) + len(rows) * np.arange(block)[:, None]
            counts[:, rows] = np.bincount(drawn.ravel(), minlength=block * len(rows)).reshape(block, len(rows))
        yield counts


def percentile_interval(resampled: np.ndarray) -> np.ndarray:
    """The lower and the upper ends [2 n] of the 95 % intervals of numbers that were computed for each resample [r n]."""
    tail = 100 * (1 - LEVEL) / 2
    return np.asarray(np.nanpercentile(resampled, [tail, 100 - tail], axis=0))


def sign_flip_p(differences: Mapping[str, np.ndarray], *, flips: int = FLIPS) -> dict[str, float]:
    """The two-sided p-value of each array [b] of paired differences.

    It is the share of random sign patterns under which the mean lies at least as far from zero as the observed one. For up
    to EXACT_UP_TO queries every pattern is counted, and the p-value is exact.
    """
    if not differences:
        return {}
    table = np.nan_to_num(np.stack(list(differences.values()), axis=1))  # [b n]
    observed = np.abs(table.sum(axis=0))
    # Sums in another order differ in their last bits, which must not decide.
    threshold = observed - 1e-9 * (1 + np.abs(table).sum(axis=0))
    exact = len(table) <= EXACT_UP_TO
    blocks = _all_signs(len(table)) if exact else _random_signs(len(table), flips)
    reached = np.zeros(len(observed))
    total = 0
    for signs in blocks:
        reached += (np.abs(signs @ table) >= threshold).sum(axis=0)
        total += len(signs)
    # The observed signs count as one of the random patterns. Among all patterns they are included.
    p = reached / total if exact else (reached + 1) / (total + 1)
    return {name: float(value) for name, value in zip(differences, p, strict=True)}


def _strata(groups: Sequence[str], count: int) -> list[np.ndarray]:
    """The rows that are resampled among themselves."""
    rows = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]
    return rows if rows and min(map(len, rows)) > 1 else [np.arange(count)]


def _all_signs(count: int) -> list[np.ndarray]:
    """Every pattern of signs [pattern b], in one block."""
    bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
    return [1.0 - 2.0 * bits]


def _random_signs(count: int, flips: int) -> Iterator[np.ndarray]:
    """Random patterns of signs [pattern b], in blocks."""
    rng = np.random.default_rng(SEED)
    step = max(1, BLOCK // count)
    for start in range(0, flips, step):
        yield 1.0 - 2.0 * rng.integers(0, 2, (min(step, flips - start), count))

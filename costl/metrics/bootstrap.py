"""How sure a number is: bootstrap intervals over queries and the sign-flip test, for many numbers at once.

Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals; Pesarin and Salmaso,
Permutation Tests for Complex Data (2010), sign flips of paired differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

RESAMPLES = 2_000
FLIPS = 10_000
LEVEL = 0.95
# Up to this many queries every pattern of signs is looked at, so that the test is exact.
EXACT_UP_TO = 13
# How many counts or signs are held at once.
BLOCK = 4_000_000

Interval = tuple[float, float]


def bootstrap_intervals(
    values: Mapping[str, np.ndarray], *, groups: Sequence[str] = (), resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """The 95 % percentile interval of the mean of each array [q] over the queries where it is no NaN.

    All arrays are resampled together. `groups` [q] keeps the number of queries of each group as it is, where each has
    at least two; a mean over groups is then resampled as such. An array with fewer than two values has no interval.
    """
    kept = {name: array for name, array in values.items() if np.count_nonzero(~np.isnan(array)) > 1}
    if not kept:
        return {}
    table = np.stack(list(kept.values()), axis=1)
    real = ~np.isnan(table)
    means = []
    for counts in _resampled(_strata(groups, len(table)), resamples, np.random.default_rng(seed)):
        with np.errstate(invalid="ignore"):  # NaN where nothing that counts was drawn
            means.append(counts @ np.where(real, table, 0.0) / (counts @ real))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(kept, low, high, strict=True)}


def sign_flip_p(differences: Mapping[str, np.ndarray], *, flips: int = FLIPS, seed: int = 0) -> dict[str, float]:
    """Two-sided p-value of each array [q] of paired differences: how often its mean would lie as far from zero if every
    difference had come with the opposite sign by the toss of a coin. Exact for few queries."""
    if not differences:
        return {}
    table = np.nan_to_num(np.stack(list(differences.values()), axis=1))
    seen = np.abs(table.sum(axis=0))
    # Sums in another order differ in their last bits: as far means as far but for those.
    least = seen - 1e-9 * (1 + np.abs(table).sum(axis=0))
    exact = len(table) <= EXACT_UP_TO
    reached, total = np.zeros(len(seen)), 0
    for signs in _all_signs(len(table)) if exact else _random_signs(len(table), flips, np.random.default_rng(seed)):
        reached += (np.abs(signs @ table) >= least).sum(axis=0)
        total += len(signs)
    # The signs as they were belong to the draws; among all patterns they are already.
    p = reached / total if exact else (reached + 1) / (total + 1)
    return {name: float(value) for name, value in zip(differences, p, strict=True)}


def _strata(groups: Sequence[str], count: int) -> list[np.ndarray]:
    """The rows that are resampled among themselves."""
    rows = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]
    return rows if rows and min(map(len, rows)) > 1 else [np.arange(count)]


def _resampled(strata: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each row is drawn [b q], in blocks."""
    count = sum(map(len, strata))
    step = max(1, BLOCK // count)
    for start in range(0, resamples, step):
        block = min(step, resamples - start)
        counts = np.zeros((block, count))
        for rows in strata:
            drawn = rng.integers(0, len(rows), (block, len(rows))) + len(rows) * np.arange(block)[:, None]
            counts[:, rows] = np.bincount(drawn.ravel(), minlength=block * len(rows)).reshape(block, len(rows))
        yield counts


def _all_signs(count: int) -> Iterator[np.ndarray]:
    bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
    yield 1.0 - 2.0 * bits


def _random_signs(count: int, flips: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    step = max(1, BLOCK // count)
    for start in range(0, flips, step):
        yield 1.0 - 2.0 * rng.integers(0, 2, (min(step, flips - start), count))

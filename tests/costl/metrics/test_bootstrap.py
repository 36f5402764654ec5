"""Bootstrap and sign flips against textbook formulas and brute force."""

from __future__ import annotations

import math
import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.metrics.bootstrap import bootstrap_intervals, sign_flip_p

NAN = float("nan")


def test_the_interval_of_a_mean_is_as_wide_as_the_textbook_says():
    values = np.random.default_rng(3).normal(50, 10, 400)
    low, high = bootstrap_intervals({"m": values}, resamples=5000)["m"]
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1)


def test_percentiles_are_those_of_means_of_resamples():
    values, rng = np.array([0.0, 10.0, 50.0, 100.0]), np.random.default_rng(8)
    means = [rng.choice(values, 4).mean() for _ in range(20_000)]
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_intervals({"m": values}, resamples=20_000)["m"] == pytest.approx(tuple(expected), abs=1.0)


def test_a_query_that_does_not_count_changes_the_weight_of_no_other():
    values = np.random.default_rng(0).normal(0, 1, 200)
    padded = np.concatenate([values, np.full(200, NAN)])
    unpadded, padded = (bootstrap_intervals({"m": array}, resamples=5000)["m"] for array in (values, padded))
    assert unpadded == pytest.approx(padded, abs=0.02)


def test_fewer_than_two_values_have_no_interval():
    result = bootstrap_intervals({"one": np.array([NAN, 3.0]), "two": np.array([1.0, 3.0])})
    assert set(result) == {"two"} and bootstrap_intervals({"one": np.array([3.0])}) == {} == bootstrap_intervals({})


def test_an_interval_is_reproducible_and_empty_for_constants():
    values = {"m": np.arange(10.0), "c": np.full(10, 7.0)}
    assert bootstrap_intervals(values) == bootstrap_intervals(values)
    assert bootstrap_intervals(values)["c"] == pytest.approx((7, 7))


def test_groups_of_two_or_more_keep_their_size():
    values, groups = np.array([0.0, 0.0, 100.0, 100.0]), ["a", "a", "b", "b"]
    assert bootstrap_intervals({"m": values}, groups=groups)["m"] == (50, 50)
    assert bootstrap_intervals({"m": values}, groups=["a", "b", "c", "d"])["m"][0] < 20
    assert bootstrap_intervals({"m": values}, groups=["a", "a", "a", "d"])["m"][0] < 20


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    values = {"m": np.random.default_rng(0).normal(size=50)}
    whole, flips = bootstrap_intervals(values), sign_flip_p(values)
    monkeypatch.setattr("costl.metrics.bootstrap.BLOCK", 999)
    assert bootstrap_intervals(values)["m"] == pytest.approx(whole["m"])
    assert sign_flip_p(values) == flips


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-3, 3) | st.just(NAN), min_size=1, max_size=8))
def test_few_queries_are_tested_exactly(differences):
    real = [value for value in differences if value == value]
    flips = [abs(sum(s * v for s, v in zip(signs, real, strict=True))) for signs in product((1, -1), repeat=len(real))]
    expected = np.mean([flipped >= abs(sum(real)) for flipped in flips])
    assert sign_flip_p({"m": np.array(differences, dtype=float)}) == {"m": pytest.approx(expected)}


def test_many_queries_are_tested_as_a_normal_approximation_says():
    differences = np.random.default_rng(5).normal(0.1, 1, 500)
    z = abs(differences.sum()) / np.sqrt(np.square(differences).sum())
    expected = 2 * (1 - 0.5 * (1 + math.erf(z / math.sqrt(2))))
    assert sign_flip_p({"m": differences}, flips=20_000)["m"] == pytest.approx(float(expected), abs=0.01)


def test_no_difference_has_p_1_and_a_large_one_the_smallest_p():
    result = sign_flip_p({"none": np.zeros(100), "all": np.full(100, 5.0)}, flips=999)
    assert result == {"none": 1.0, "all": 0.001}


def test_p_values_without_a_difference_are_uniform():
    rng = np.random.default_rng(1)
    p = sign_flip_p({str(i): rng.normal(size=60) for i in range(300)}, flips=500)
    assert np.mean(np.array(list(p.values())) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_resampling_qvhighlights_val_takes_less_than_two_seconds():
    values = {str(i): np.random.default_rng(i).normal(size=1550) for i in range(20)}
    started = time.process_time()
    bootstrap_intervals(values)
    assert time.process_time() - started < 2.0


def test_the_default_is_two_thousand_resamples_from_seed_0():
    values = np.arange(10.0) ** 2
    drawn = np.random.default_rng(0).integers(0, 10, (2000, 10))
    expected = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    assert bootstrap_intervals({"a": values})["a"] == pytest.approx(tuple(expected))


@pytest.mark.parametrize("values", [[1.0, 5.0], [1.0, 2.0, 7.0, 30.0]])
def test_a_resample_without_any_value_is_left_out(values):
    sparse = np.array([*values, *[np.nan] * 6])
    drawn = np.random.default_rng(0).integers(0, len(sparse), (2000, len(sparse)))
    means = [np.nanmean(row) for row in sparse[drawn] if not np.isnan(row).all()]
    assert len(means) < 2000
    expected = np.percentile(means, [2.5, 97.5])
    assert bootstrap_intervals({"a": sparse})["a"] == pytest.approx(tuple(expected))


def test_thirteen_queries_are_the_most_that_are_tested_exactly():
    assert sign_flip_p({"a": np.ones(13)}) == {"a": 2 / 2**13}
    assert sign_flip_p({"a": np.ones(14)})["a"] == pytest.approx(1 / 10_001, abs=5 / 10_001)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6 / 3, 1e9 / 7])
def test_neither_units_nor_other_numbers_change_a_p_value(unit):
    # Tenths are not exact: two patterns of signs whose sums are equal on paper differ in their last bits.
    tenths = [1, 2, 3, -3, 4, 6, -7, 1]
    flips = [abs(sum(s * v for s, v in zip(signs, tenths, strict=True))) for signs in product((1, -1), repeat=8)]
    expected = np.mean([flipped >= abs(sum(tenths)) for flipped in flips])
    far = np.array([1e12, -1e12, 0, 0, 0, 0, 0, 1.0])
    result = sign_flip_p({"a": np.array(tenths) / 10 * unit, "far": far})
    assert result["a"] == expected


@pytest.mark.parametrize("resamples", [1, 2, 7])
def test_the_number_of_resamples_is_the_requested_one(resamples):
    values = np.random.default_rng(4).normal(size=10)  # no two resamples have one mean
    drawn = np.random.default_rng(0).integers(0, 10, (resamples, 10))
    expected = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    assert bootstrap_intervals({"a": values}, resamples=resamples)["a"] == pytest.approx(tuple(expected), rel=1e-12)

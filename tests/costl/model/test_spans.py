"""Interval arithmetic: equal to plain arithmetic on one pair at a time, and its invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.model.spans import distance_iou, intersection, iou, soft_nms

# Quarters below 2**10 are exact in float32, so that shifting them loses nothing.
quarters = st.integers(-1000, 1000).map(lambda n: n / 4)
span = st.tuples(quarters, st.integers(1, 400).map(lambda n: n / 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
several = st.lists(st.tuples(span, st.integers(0, 100).map(lambda n: n / 100)), min_size=1, max_size=12)


def plain_iou(a, b) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def tensors(*rows):
    return (torch.tensor(row, dtype=torch.float64) for row in rows)


def plain_soft_nms(rows, *, sigma, keep):
    """Selects the best span and lowers the scores of all others, again and again."""
    selected: list[tuple[float, float, float]] = []
    rows = [(*span, score) for span, score in rows]
    while rows and len(selected) < keep:
        best = max(rows, key=lambda row: row[2])  # the first of equals
        rows.remove(best)
        rows = [(a, b, s * math.exp(-(plain_iou((a, b), best) ** 2) / sigma)) for a, b, s in rows]
        selected.append(best)
    return selected


# --- overlap -----------------------------------------------------------------------------------------------------


@given(span, span)
def test_overlap_equals_plain_arithmetic(a, b):
    x, y = tensors(a, b)
    assert intersection(x, y) == max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    assert iou(x, y).item() == pytest.approx(plain_iou(a, b), abs=1e-12)


@given(span, span)
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    x, y = tensors(a, b)
    assert iou(x, y) == iou(y, x)
    assert 0 <= iou(x, y) <= 1
    assert distance_iou(x, y).item() == pytest.approx(distance_iou(y, x).item(), abs=1e-12)
    assert -1 <= distance_iou(x, y) <= iou(x, y)


@given(span)
def test_a_span_overlaps_itself_completely(a):
    (x,) = tensors(a)
    assert iou(x, x) == 1
    assert distance_iou(x, x) == 1


@given(span, span, quarters)
def test_moving_both_spans_does_not_change_the_iou(a, b, by):
    x, y = (torch.tensor(row) for row in (a, b))
    assert iou(x + by, y + by) == iou(x, y)
    assert distance_iou(x + by, y + by).item() == pytest.approx(distance_iou(x, y).item(), abs=1e-6)


@given(span, span, st.sampled_from([2.0**power for power in (-9, -3, 1, 10)]))
def test_other_units_of_time_do_not_change_the_iou(a, b, unit):
    x, y = tensors(a, b)
    assert iou(x * unit, y * unit) == iou(x, y)
    assert distance_iou(x * unit, y * unit) == distance_iou(x, y)
    assert intersection(x * unit, y * unit) == intersection(x, y) * unit


@given(span, span)
def test_the_iou_with_a_longer_span_is_the_ratio_of_the_lengths(a, b):
    x, y = tensors(a, b)
    hull = torch.stack([torch.minimum(x[0], y[0]), torch.maximum(x[1], y[1])])
    assert iou(x, hull).item() == pytest.approx((a[1] - a[0]) / (hull[1] - hull[0]).item())
    assert distance_iou(x, y) >= -(((x.sum() - y.sum()) / 2 / (hull[1] - hull[0])) ** 2) - 1e-12


def test_spans_that_touch_or_are_empty_do_not_overlap():
    touching, empty = torch.tensor([[0.0, 2.0], [2.0, 4.0]]), torch.tensor([3.0, 3.0])
    assert iou(touching[0], touching[1]) == 0
    assert iou(empty, empty) == 0
    assert distance_iou(empty, empty) == 0


def test_broadcasting_computes_all_pairs():
    a, b = torch.tensor([[0.0, 2.0], [1.0, 3.0], [5.0, 6.0]]), torch.tensor([[0.0, 4.0], [2.0, 6.0]])
    expected = [[plain_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    assert torch.allclose(iou(a[:, None], b), torch.tensor(expected))
    one_by_one = [[distance_iou(x, y).item() for y in b] for x in a]
    assert torch.allclose(distance_iou(a[:, None], b), torch.tensor(one_by_one))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 4), (2, 6), 2 / 6 - (2 / 6) ** 2),  # centres 2 and 4, hull 0 to 6
        ((0, 2), (6, 8), 0 - (6 / 8) ** 2),  # no overlap: the distance still has a gradient
        ((0, 8), (3, 5), 2 / 8),  # same centre: no penalty
        ((0, 8), (0, 2), 2 / 8 - (3 / 8) ** 2),
    ],
)
def test_distance_iou_equals_values_computed_by_hand(a, b, expected):
    assert distance_iou(*tensors(a, b)).item() == pytest.approx(expected)


# --- suppression -------------------------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples * 2 // 3)
@given(several, st.sampled_from([0.1, 0.5, 2.0]), st.integers(1, 12))
def test_soft_nms_equals_a_plain_loop(rows, sigma, keep):
    spans, scores = tensors([row[0] for row in rows], [row[1] for row in rows])
    result = soft_nms(spans, scores, sigma=sigma, keep=keep)
    expected = torch.tensor(plain_soft_nms(rows, sigma=sigma, keep=keep), dtype=torch.float64)
    # With equal scores either span may be selected first, which changes the other scores: compare scores.
    assert torch.allclose(result[0], expected[0])
    if len({row[1] for row in rows}) == len(rows):
        assert torch.allclose(result[:, 2], expected[:, 2], atol=1e-9)


@settings(max_examples=settings.default.max_examples * 2 // 3)
@given(several, st.sampled_from([1e-6, 0.01, 0.5, 1e6]), st.integers(1, 12))
def test_soft_nms_gives_a_sorted_subset_whose_scores_never_rise(rows, sigma, keep):
    spans, scores = tensors([row[0] for row in rows], [row[1] for row in rows])
    result = soft_nms(spans, scores, sigma=sigma, keep=keep)
    assert len(result) == min(keep, len(rows))
    assert (result[:, 2].diff() <= 0).all()
    assert (result[:, 2] >= 0).all()
    remaining = [(*span, score) for span, score in rows]
    for start, end, score in result.tolist():  # each input span at most once, with its own score or a lower one
        original = max((row for row in remaining if row[:2] == (start, end) and row[2] >= score), key=lambda r: r[2])
        remaining.remove(original)


@given(several)
def test_soft_nms_does_not_change_spans_that_do_not_overlap(rows):
    spans, scores = [(10.0 * i, 10.0 * i + 5) for i in range(len(rows))], [row[1] for row in rows]
    once = soft_nms(*tensors(spans, scores), sigma=0.5, keep=len(rows))
    assert once[:, 2].tolist() == sorted(scores, reverse=True)
    assert torch.equal(soft_nms(once[:, :2], once[:, 2], sigma=0.5, keep=len(rows)), once)


def test_soft_nms_lowers_a_score_by_the_square_of_the_overlap():
    spans, scores = tensors([(0.0, 4.0), (2.0, 6.0), (10.0, 12.0)], [0.9, 0.8, 0.7])
    result = soft_nms(spans, scores, sigma=0.5, keep=3)
    lowered = 0.8 * math.exp(-((2 / 6) ** 2) / 0.5)
    assert result.flatten().tolist() == pytest.approx([0, 4, 0.9, 10, 12, 0.7, 2, 6, lowered])


def test_soft_nms_selects_no_span_twice_even_with_scores_of_zero():
    spans, scores = tensors([(0.0, 4.0), (0.0, 4.0), (10.0, 12.0)], [0.9, 0.8, 0.0])
    assert soft_nms(spans, scores, sigma=1e-6, keep=3)[2].tolist() == [10, 12, 0]


def test_soft_nms_of_no_spans_is_empty_and_inputs_do_not_change():
    assert soft_nms(torch.zeros(0, 2), torch.zeros(0), sigma=0.5, keep=5).shape == (0, 3)
    scores = torch.tensor([0.5, 0.4])
    soft_nms(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), scores, sigma=0.5, keep=2)
    assert scores.tolist() == pytest.approx([0.5, 0.4])

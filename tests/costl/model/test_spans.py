"""Interval arithmetic against plain arithmetic on one pair at a time, and the laws it has to obey."""

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
    """Take the best, press the others down, again."""
    taken: list[tuple[float, float, float]] = []
    rows = [(*where, score) for where, score in rows]
    while rows and len(taken) < keep:
        best = max(rows, key=lambda row: row[2])  # the first of equals
        rows.remove(best)
        rows = [(a, b, s * math.exp(-(plain_iou((a, b), best) ** 2) / sigma)) for a, b, s in rows]
        taken.append(best)
    return taken


# --- overlap -----------------------------------------------------------------------------------------------------


@given(span, span)
def test_overlap_is_what_plain_arithmetic_says(a, b):
    x, y = tensors(a, b)
    assert intersection(x, y) == max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    assert iou(x, y).item() == pytest.approx(plain_iou(a, b), abs=1e-12)


@given(span, span)
def test_overlap_does_not_depend_on_the_order_and_stays_between_zero_and_one(a, b):
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
def test_moving_both_spans_changes_nothing(a, b, by):
    x, y = (torch.tensor(row) for row in (a, b))
    assert iou(x + by, y + by) == iou(x, y)
    assert distance_iou(x + by, y + by).item() == pytest.approx(distance_iou(x, y).item(), abs=1e-6)


@given(span, span, st.sampled_from([2.0**power for power in (-9, -3, 1, 10)]))
def test_measuring_in_other_units_changes_nothing(a, b, unit):
    x, y = tensors(a, b)
    assert iou(x * unit, y * unit) == iou(x, y)
    assert distance_iou(x * unit, y * unit) == distance_iou(x, y)
    assert intersection(x * unit, y * unit) == intersection(x, y) * unit


@given(span, span)
def test_what_lies_inside_overlaps_by_the_share_of_its_length(a, b):
    x, y = tensors(a, b)
    hull = torch.stack([torch.minimum(x[0], y[0]), torch.maximum(x[1], y[1])])
    assert iou(x, hull).item() == pytest.approx((a[1] - a[0]) / (hull[1] - hull[0]).item())
    assert distance_iou(x, y) >= -(((x.sum() - y.sum()) / 2 / (hull[1] - hull[0])) ** 2) - 1e-12


def test_spans_that_touch_or_are_empty_do_not_overlap():
    touching, empty = torch.tensor([[0.0, 2.0], [2.0, 4.0]]), torch.tensor([3.0, 3.0])
    assert iou(touching[0], touching[1]) == 0
    assert iou(empty, empty) == 0
    assert distance_iou(empty, empty) == 0


def test_all_pairs_by_broadcasting():
    a, b = torch.tensor([[0.0, 2.0], [1.0, 3.0], [5.0, 6.0]]), torch.tensor([[0.0, 4.0], [2.0, 6.0]])
    expected = [[plain_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    assert torch.allclose(iou(a[:, None], b), torch.tensor(expected))
    one_by_one = [[distance_iou(x, y).item() for y in b] for x in a]
    assert torch.allclose(distance_iou(a[:, None], b), torch.tensor(one_by_one))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 4), (2, 6), 2 / 6 - (2 / 6) ** 2),  # centres 2 and 4, hull 0 to 6
        ((0, 2), (6, 8), 0 - (6 / 8) ** 2),  # apart: the distance still tells which way to go
        ((0, 8), (3, 5), 2 / 8),  # same centre: nothing is taken away
        ((0, 8), (0, 2), 2 / 8 - (3 / 8) ** 2),
    ],
)
def test_distance_iou_by_hand(a, b, expected):
    assert distance_iou(*tensors(a, b)).item() == pytest.approx(expected)


# --- suppression -------------------------------------------------------------------------------------------------


@settings(max_examples=settings.default.max_examples * 2 // 3)
@given(several, st.sampled_from([0.1, 0.5, 2.0]), st.integers(1, 12))
def test_soft_nms_is_the_plain_loop(rows, sigma, keep):
    where, scores = tensors([row[0] for row in rows], [row[1] for row in rows])
    found = soft_nms(where, scores, sigma=sigma, keep=keep)
    expected = torch.tensor(plain_soft_nms(rows, sigma=sigma, keep=keep), dtype=torch.float64)
    # Equal scores may come in either order, and then press each other down in either order: compare the scores.
    assert torch.allclose(found[0], expected[0])
    if len({row[1] for row in rows}) == len(rows):
        assert torch.allclose(found[:, 2], expected[:, 2], atol=1e-9)


@settings(max_examples=settings.default.max_examples * 2 // 3)
@given(several, st.sampled_from([1e-6, 0.01, 0.5, 1e6]), st.integers(1, 12))
def test_soft_nms_gives_a_sorted_subset_whose_scores_never_rise(rows, sigma, keep):
    where, scores = tensors([row[0] for row in rows], [row[1] for row in rows])
    found = soft_nms(where, scores, sigma=sigma, keep=keep)
    assert len(found) == min(keep, len(rows))
    assert (found[:, 2].diff() <= 0).all()
    assert (found[:, 2] >= 0).all()
    left = [(*place, score) for place, score in rows]
    for start, end, score in found.tolist():  # each input at most once, at its own score or below
        match = max((row for row in left if row[:2] == (start, end) and row[2] >= score), key=lambda r: r[2])
        left.remove(match)


@given(several)
def test_soft_nms_leaves_spans_that_do_not_meet_as_they_are(rows):
    where, scores = [(10.0 * i, 10.0 * i + 5) for i in range(len(rows))], [row[1] for row in rows]
    once = soft_nms(*tensors(where, scores), sigma=0.5, keep=len(rows))
    assert once[:, 2].tolist() == sorted(scores, reverse=True)
    assert torch.equal(soft_nms(once[:, :2], once[:, 2], sigma=0.5, keep=len(rows)), once)


def test_soft_nms_presses_a_neighbour_down_by_the_square_of_the_overlap():
    where, scores = tensors([(0.0, 4.0), (2.0, 6.0), (10.0, 12.0)], [0.9, 0.8, 0.7])
    found = soft_nms(where, scores, sigma=0.5, keep=3)
    pressed = 0.8 * math.exp(-((2 / 6) ** 2) / 0.5)
    assert found.flatten().tolist() == pytest.approx([0, 4, 0.9, 10, 12, 0.7, 2, 6, pressed])


def test_soft_nms_never_takes_a_span_twice_even_where_scores_run_down_to_zero():
    where, scores = tensors([(0.0, 4.0), (0.0, 4.0), (10.0, 12.0)], [0.9, 0.8, 0.0])
    assert soft_nms(where, scores, sigma=1e-6, keep=3)[2].tolist() == [10, 12, 0]


def test_soft_nms_of_nothing_is_nothing_and_the_scores_given_stay_as_they_are():
    assert soft_nms(torch.zeros(0, 2), torch.zeros(0), sigma=0.5, keep=5).shape == (0, 3)
    scores = torch.tensor([0.5, 0.4])
    soft_nms(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), scores, sigma=0.5, keep=2)
    assert scores.tolist() == pytest.approx([0.5, 0.4])

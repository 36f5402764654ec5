"""Moments without training: tiny curves worked out by hand, and a search over all pairs of clips."""

import itertools

import numpy as np
import pytest

from costl.pipeline.errors import UsageError
from costl.search.moments import MAX_OVERLAP, WINDOW_CELLS, Segment, find_segments, suppress_overlaps

SCALE = 40.0


def iou(one, other):
    overlap = max(min(one[1], other[1]) - max(one[0], other[0]), 0)
    return overlap / (one[1] - one[0] + other[1] - other[0] - overlap)


def all_pairs(curve, limit):
    """The definition: sums of log(clips * softmax) over all pairs, then the best that overlap none of the better."""
    weights = [np.exp(SCALE * float(x)) for x in curve]
    evidence = [np.log(len(curve) * weight / sum(weights)) for weight in weights]
    pairs = itertools.combinations(range(len(curve) + 1), 2)
    ranked = sorted(((sum(evidence[a:b]), a, b) for a, b in pairs), key=lambda row: -row[0])
    chosen = []
    for score, a, b in ranked:
        if score > 1e-9 and len(chosen) < limit and all(iou((a, b), one[:2]) <= 0.5 for one in chosen):
            chosen.append((a, b, score))
    return chosen


def bump(length, start, end, height=0.1, noise=0.004, seed=0):
    curve = 0.2 + noise * np.random.default_rng(seed).standard_normal(length)
    curve[start:end] += height
    return curve.astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_segments_are_those_of_a_search_over_all_pairs(seed):
    curve = np.random.default_rng(seed).normal(0.2, 0.05, 4 + 5 * seed).astype(np.float32)
    expected = all_pairs(curve, 10)
    result = find_segments(curve, logit_scale=SCALE)
    assert [segment[:2] for segment in result] == [row[:2] for row in expected]
    assert [segment.score for segment in result] == pytest.approx([row[2] for row in expected], rel=1e-5)


def test_evidence_by_hand():
    # Softmax of (0, 0, 0, log 5) is (1, 1, 1, 5) / 8; four clips times it is (0.5, 0.5, 0.5, 2.5).
    curve = np.array([0, 0, 0, np.log(5) / SCALE], np.float32)
    best, second = find_segments(curve, logit_scale=SCALE)
    assert best == Segment(3, 4, pytest.approx(np.log(2.5), rel=1e-5))
    assert second == Segment(2, 4, pytest.approx(np.log(2.5 * 0.5), rel=1e-5))


def test_two_bumps_give_two_segments_the_stronger_first():
    curve = bump(50, 5, 12, 0.10)
    curve[30:42] += 0.12
    result = find_segments(curve, logit_scale=SCALE, limit=2, max_overlap=0.0)
    assert [segment[:2] for segment in result] == [(30, 42), (5, 12)]


def test_without_overlaps_the_rest_of_the_video_is_searched_again():
    curve = np.random.default_rng(5).normal(0.2, 0.05, 60)
    result = find_segments(curve, logit_scale=SCALE, limit=99, max_overlap=0.0)
    weights = np.exp(SCALE * curve)
    evidence = np.log(len(curve) * weights / weights.sum())

    def search(first, last):
        spans = [(evidence[a:b].sum(), a, b) for a, b in itertools.combinations(range(first, last + 1), 2)]
        score, start, end = max(spans, default=(0.0, 0, 0))
        return [(start, end), *search(first, start), *search(end, last)] if score > 0 else []

    assert {segment[:2] for segment in result} == set(search(0, 60))


@pytest.mark.parametrize(("shift", "stretch"), [(0.3, 1.0), (-0.5, 1.0), (0.0, 0.25), (-0.1, 4.0)])
def test_a_shift_or_another_unit_of_cosines_changes_nothing(shift, stretch):
    curve = bump(90, 20, 33, 0.05, 0.02).astype(np.float64)
    expected = find_segments(curve, logit_scale=SCALE)
    result = find_segments(shift + stretch * curve, logit_scale=SCALE / stretch)
    assert [segment[:2] for segment in result] == [segment[:2] for segment in expected]
    assert [segment.score for segment in result] == pytest.approx([segment.score for segment in expected])


@pytest.mark.parametrize("clips", [1, 2, 63, 64, 65, 1000])
def test_a_constant_curve_gives_the_whole_video(clips):
    curve = np.full(clips, 0.1, np.float32)
    assert find_segments(curve, logit_scale=100.0) == [Segment(0, clips, 0.0)]


@pytest.mark.parametrize("length", [3, 12, 50, 200, 1500, 6000])
def test_a_long_video_gives_moments_of_every_length(length):
    start = 7000 - length // 3
    best = find_segments(bump(18_000, start, start + length), logit_scale=SCALE)[0]
    assert iou(best, (start, start + length)) > 0.8


@pytest.mark.parametrize("clips", [64, 65, 96, 97, 128, 1000])
def test_moments_at_both_ends_of_a_video_are_inside_it(clips):
    for start in (0, clips - 5):
        result = find_segments(bump(clips, start, start + 5), logit_scale=SCALE)
        assert result[0][:2] == (start, start + 5)
        assert all(0 <= segment.start < segment.end <= clips for segment in result)


def test_windows_of_little_likelihood_come_last():
    curve = bump(20 * WINDOW_CELLS, 200, 210, 0.2)
    curve[900:910] += 0.1  # as clear in its own window, but less similar
    result = find_segments(curve, logit_scale=SCALE, limit=3, max_overlap=0.0)
    assert [segment[:2] for segment in result[:2]] == [(200, 210), (900, 910)]
    assert result[1].score < 0.1 * result[0].score


@pytest.mark.parametrize(("clips", "start", "end"), [(500, 150, 190), (1000, 100, 250)])
def test_a_window_cuts_no_moment_off(clips, start, end):
    best = find_segments(bump(clips, start, end, 0.02), logit_scale=SCALE)[0]
    assert iou(best, (start, end)) > 0.95


def test_at_most_limit_segments_overlap_little_and_fall_in_score():
    curve = np.random.default_rng(3).normal(0.2, 0.03, 300)
    result = find_segments(curve, logit_scale=SCALE, limit=4)
    assert len(result) == 4
    assert all(iou(a, b) <= MAX_OVERLAP for a, b in itertools.combinations(result, 2))
    assert [segment.score for segment in result] == sorted((segment.score for segment in result), reverse=True)


def test_equal_scores_keep_the_earlier_segment_first():
    rows = np.array([[4, 6, 1.0], [0, 2, 1.0], [4, 7, 1.0]])
    assert suppress_overlaps(rows, 10).tolist() == [[0, 2, 1.0], [4, 6, 1.0]]


@pytest.mark.parametrize("curve", [[], [[0.1, 0.2]], [0.1, float("nan")], [float("inf")]])
def test_a_curve_without_numbers_is_refused(curve):
    with pytest.raises(UsageError, match="one finite number for each clip"):
        find_segments(np.array(curve, np.float32), logit_scale=SCALE)

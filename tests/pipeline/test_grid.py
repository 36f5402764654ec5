"""The feature grid: how many clips a video has, and where their centres are."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.pipeline.errors import UsageError
from costl.pipeline.grid import Grid


@pytest.mark.parametrize(
    ("fps", "duration_s", "clips"),
    [(0.5, 150.0, 75), (0.5, 151.0, 75), (0.5, 151.1, 76), (0.5, 0.9, 1), (0.5, 0.04, 1), (1.0, 30.7, 31)],
)
def test_the_number_of_clips_of_known_videos(fps, duration_s, clips):
    assert Grid(fps, duration_s).clips == clips


def test_centres_are_in_the_middle_of_their_clips():
    assert Grid(0.5, 8.0).centres_s().tolist() == [1.0, 3.0, 5.0, 7.0]
    assert Grid(0.5, 7.5).centres_s().tolist() == [1.0, 3.0, 5.0, 7.0]
    assert Grid(0.5, 8.0).clip_s == 2.0


def test_a_video_shorter_than_half_a_clip_has_its_middle_as_centre():
    assert Grid(0.5, 0.6).centres_s().tolist() == [0.3]
    assert Grid(0.5, 1.0).centres_s().tolist() == [0.5]  # just half a clip: its centre would be the video's end


def test_rounding_errors_add_no_clip():
    assert Grid(0.1, 35.0 + 1e-9).clips == 3
    assert Grid(1 / 3, 3 * 2.5).clips == 2
    assert Grid(0.5, 151.0004).clips == 76  # not a rounding error: video containers store finer times


@settings(deadline=None)
@given(fps=st.floats(0.01, 60), duration_s=st.floats(0.01, 36_000))
def test_centres_rise_evenly_inside_the_video(fps, duration_s):
    grid = Grid(fps, duration_s)
    centres_s = grid.centres_s()
    assert centres_s.dtype == np.float64 and len(centres_s) == grid.clips >= 1
    assert (centres_s > 0).all() and (centres_s < duration_s).all()
    assert np.allclose(np.diff(centres_s), 1 / fps, rtol=1e-6)


@given(fps=st.floats(0.01, 60), duration_s=st.floats(0.01, 36_000), more_s=st.floats(0, 100))
def test_clips_reach_the_end_and_a_longer_video_never_has_fewer(fps, duration_s, more_s):
    grid = Grid(fps, duration_s)
    covered_s = grid.clips * grid.clip_s
    assert grid.clips == 1 or abs(covered_s - duration_s) <= 0.5 * grid.clip_s + 1e-6 / fps
    assert covered_s >= duration_s - 0.5 * grid.clip_s - 1e-6 / fps
    assert Grid(fps, duration_s + more_s).clips >= grid.clips


@given(fps=st.floats(0.01, 60), duration_s=st.floats(0.01, 36_000))
def test_every_centre_lies_in_the_middle_of_its_own_clip(fps, duration_s):
    grid = Grid(fps, duration_s)
    starts_s = np.arange(grid.clips) / fps
    has_centre = starts_s + 0.5 / fps < duration_s
    assert np.allclose((grid.centres_s() - starts_s)[has_centre], 0.5 / fps, rtol=1e-6)
    assert has_centre[:-1].all() and (grid.centres_s()[~has_centre] == duration_s / 2).all()


@settings(deadline=None)
@given(tenths=st.integers(1, 40_000), fps=st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(2), Fraction(1, 3)]))
def test_the_number_of_clips_follows_the_definition_exactly(tenths, fps):
    exact = max(1, math.ceil(Fraction(tenths, 10) * fps - Fraction(1, 2)))
    assert Grid(float(fps), tenths / 10).clips == exact


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_numbers_are_refused_by_name(value):
    with pytest.raises(UsageError, match=r"^feature grid: fps is"):
        Grid(value, 10.0)
    with pytest.raises(UsageError, match=r"^feature grid: duration_s is"):
        Grid(0.5, value)

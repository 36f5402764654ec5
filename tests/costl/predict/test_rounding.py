"""Rounding of predicted times: to the nearest multiple, inside the video, never empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.predict.postprocess import round_span


@pytest.mark.parametrize(
    ("window", "duration_s", "unit_s", "expected"),
    [
        ((3.2, 8.9), 150.0, 2.0, (4, 8)),
        ((0.26, 0.34), 9.0, 0.1, (0.3, 0.4)),  # both nearest to 0.3
        ((5.1, 5.3), 150.0, 2.0, (4, 6)),  # would be empty at 6: the unit that contains its middle
        ((148.6, 149.3), 149.3, 2.0, (148, 149.3)),  # the video's own end, as published code keeps it
        ((0.1, 0.6), 0.6, 2.0, (0, 0.6)),  # shorter than the grid
        ((0.31, 0.62), 9.0, 0.1, (0.3, 0.6)),  # written so, not as 0.30000000000000004
    ],
)
def test_times_go_to_the_nearest_multiple(window, duration_s, unit_s, expected):
    assert round_span(*window, duration_s=duration_s, unit_s=unit_s) == expected


@given(st.floats(0.1, 900), st.sampled_from([0.1, 0.5, 1.0, 2.0, 7.3]), st.floats(0, 1), st.floats(0, 1))
def test_a_rounded_window_stays_in_the_video_and_is_not_empty(duration_s, unit_s, a, b):
    start, end = sorted((a * duration_s, b * duration_s))
    if not start < end:
        return
    new_start, new_end = round_span(start, end, duration_s=duration_s, unit_s=unit_s)
    assert 0 <= new_start < new_end <= duration_s
    assert abs(new_start - start) <= unit_s + 1e-6 and abs(new_end - end) <= unit_s + 1e-6
    again = round_span(new_start, new_end, duration_s=duration_s, unit_s=unit_s)
    assert again == pytest.approx((new_start, new_end), abs=1e-6)

"""Sampling times: which frame is on screen at a wanted second, against a walk along all frames."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.pipeline.decode.video import LONGEST_S, Timeline, timeline
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid

NOTHING = Path(os.devnull)  # no MP4, so that it has no edit list
# Frames last a multiple of 1/64 s, which float32 holds exactly; some are hidden before time 0, some last very long.
lengths = st.lists(st.integers(1, 40) | st.sampled_from([64, 640, 6400]), min_size=1, max_size=40)


def made(ticks: list[int], hidden: int) -> tuple[Timeline, list[float]]:
    """The timeline of frames that last so many ticks each, and when each begins, from the first that is shown."""
    begins = [sum(ticks[:i]) / 64 for i in range(len(ticks) + 1)]
    zero = begins[min(hidden, len(ticks) - 1)]
    edges = np.array(begins) - zero
    return timeline(NOTHING, edges[:-1], edges[1:], 0.0), list(edges)


@given(lengths, st.integers(0, 5), st.lists(st.integers(-500, 70_000), max_size=20))
def test_the_frame_on_screen_is_the_last_that_began(ticks, hidden, wanted):
    line, edges = made(ticks, hidden)
    wanted_s = np.sort(np.array(wanted, dtype=float)) / 64 + 1 / 256  # between two ticks, so that nothing is a tie
    found = line.index_at(wanted_s)
    first = min(hidden, len(ticks) - 1)
    for time_s, number in zip(wanted_s, found, strict=True):
        began = [i for i, edge in enumerate(edges[:-1]) if edge <= time_s]
        assert number == min(max(first, began[-1] if began else 0), len(ticks) - 1)
    assert (np.diff(found) >= 0).all()
    assert (line.first, line.last) == (first, len(ticks) - 1)
    assert line.duration_s == pytest.approx(edges[-1], abs=1e-9) and not line.counted


@given(lengths, st.integers(0, 5))
def test_asked_for_its_own_beginning_every_shown_frame_comes_itself(ticks, hidden):
    line, edges = made(ticks, hidden)
    first = min(hidden, len(ticks) - 1)
    shown = np.array(edges[first:-1])
    for late in (0.0, 0.9 * line.grain_s, -0.9 * line.grain_s):  # as far off as a decoder rounds
        assert line.index_at(shown + late).tolist() == list(range(first, len(ticks)))


@given(lengths, st.sampled_from([0.25, 0.5, 1.0, 3.0]))
def test_of_a_grid_every_clip_gets_one_frame_inside_the_video_in_order_and_no_farther_than_it_lasts(ticks, fps):
    line, edges = made(ticks, 0)
    centres_s = Grid(fps, line.duration_s).centres_s()
    found = line.index_at(centres_s)
    assert len(found) == Grid(fps, line.duration_s).clips and (np.diff(found) >= 0).all()
    for centre_s, number in zip(centres_s, found, strict=True):
        begin_s, end_s = list(pairwise(edges))[number]
        assert begin_s - line.grain_s <= centre_s < end_s + line.grain_s


@given(st.integers(1, 200), st.sampled_from([1.0, 24.0, 29.97, 60.0]))
def test_without_timestamps_frames_are_counted_by_the_rate(count, rate):
    nothing = np.full(count, np.nan)
    line = timeline(NOTHING, nothing, nothing, rate)
    assert line.counted and line.duration_s == pytest.approx(count / rate)
    assert line.index_at((np.arange(count) + 0.5) / rate).tolist() == list(range(count))


def test_a_last_frame_of_no_length_stays_as_long_as_the_others_do():
    line = timeline(NOTHING, np.array([0.0, 0.5, 1.0]), np.array([0.5, 1.0, 1.0]), 0.0)
    assert line.duration_s == 1.5
    for nothing in ([0.0], [0.0, 0.0]):
        assert timeline(NOTHING, np.array(nothing), np.array(nothing), 0.0).duration_s == 0.04


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e4, float("nan")])
def test_neither_timestamps_nor_a_rate_is_refused(rate):
    with pytest.raises(VideoError, match="neither timestamps nor a frame rate"):
        timeline(NOTHING, np.array([np.nan]), np.array([np.nan]), rate)
    with pytest.raises(VideoError, match="neither timestamps nor a frame rate"):
        timeline(NOTHING, np.array([1e9]), np.array([1e9]), rate)


def test_what_is_never_shown_or_lasts_too_long_is_refused():
    with pytest.raises(VideoError, match="hides every frame"):
        timeline(NOTHING, np.array([-2.0, -1.0]), np.array([-1.0, 0.0]), 0.0)
    whole = np.array([0.0, LONGEST_S - 1])
    assert timeline(NOTHING, whole, whole + 1, 0.0).duration_s == LONGEST_S
    with pytest.raises(VideoError, match="50 hours by its timestamps, at most 48"):
        timeline(NOTHING, whole, whole + 1 + 1.505 * 3600, 0.0)


def test_a_frame_that_begins_at_the_wanted_second_is_on_screen_and_none_is_before_the_first_or_after_the_last():
    line = Timeline(np.array([-1.0, 0.0, 1.0, 2.0, 3.0]), first=1, last=3, duration_s=3.0, counted=False, grain_s=0.0)
    assert line.index_at([-5, 0, 0.5, 1, 2.999, 3, 99]).tolist() == [1, 1, 1, 2, 3, 3, 3]
    with pytest.raises(AssertionError, match=r"^wanted times must rise$"):
        line.index_at([2.0, 1.0])


EDITS = {None: 1.5, 1.75: 1.75, 2.0: 2.0, 2.1: 1.5, 1.25: 1.25, 1.0: 1.0, 0.6: 0.6, 0.0: 1.5}


@pytest.mark.parametrize(("edit_s", "duration_s"), EDITS.items())
def test_an_edit_list_says_when_the_last_frame_goes_away_unless_it_stays_far_too_long(monkeypatch, edit_s, duration_s):
    monkeypatch.setattr("costl.pipeline.decode.video.edit_list_s", lambda path: edit_s)
    line = timeline(NOTHING, np.array([0.0, 0.5, 1.0]), np.array([0.5, 1.0, 1.5]), 0.0)
    assert (line.duration_s, line.last) == (duration_s, 1 if duration_s <= 1 else 2)
    alone = timeline(NOTHING, np.array([0.0]), np.array([0.25]), 0.0)  # by which no other can be measured
    assert alone.duration_s == 0.25


def test_a_late_start_counts_from_the_first_frame_and_times_are_equal_as_far_as_float32_goes():
    line = timeline(NOTHING, np.array([10.0, 11.0]), np.array([11.0, 12.0]), 0.0)
    assert line.starts_s.tolist() == [0.0, 1.0] and line.duration_s == 2.0
    for starts_s, ends_s in (([0.0, 4000.0], [4000.0, 5000.0]), ([-5000.0, 0.0], [0.0, 1.0])):
        line = timeline(NOTHING, np.array(starts_s), np.array(ends_s), 0.0)
        assert line.grain_s == pytest.approx(1e-6 + 2 * 2.0**-11, rel=1e-9)  # float32 counts in 2^-11 from 4096 on
    late = Timeline(np.array([0.0, 4096.0005]), first=0, last=1, duration_s=4097.0, counted=False, grain_s=1e-4)
    assert late.index_at(np.array([4096.0005], np.float32)).tolist() == [1]

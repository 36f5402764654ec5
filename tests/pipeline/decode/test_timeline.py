"""Which frame is on screen at a wanted second, compared with a search through all frames."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costl.pipeline.decode.video import MAX_DURATION_S, Timeline, build_timeline
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid

NO_EDIT_LIST = Path(os.devnull)  # not an MP4
# Frames last a multiple of 1/64 s, which float32 holds exactly; some are hidden before time 0, some last very long.
lengths = st.lists(st.integers(1, 40) | st.sampled_from([64, 640, 6400]), min_size=1, max_size=40)


def timeline_of(ticks: list[int], hidden: int) -> tuple[Timeline, list[float]]:
    """(the timeline of frames that last so many ticks each, the seconds between which each frame is on screen).

    Time 0 is the begin of the first visible frame.
    """
    begins = [sum(ticks[:i]) / 64 for i in range(len(ticks) + 1)]
    zero = begins[min(hidden, len(ticks) - 1)]
    edges = np.array(begins) - zero
    return build_timeline(NO_EDIT_LIST, edges[:-1], edges[1:], 0.0), list(edges)


@given(lengths, st.integers(0, 5), st.lists(st.integers(-500, 70_000), max_size=20))
def test_the_frame_on_screen_is_the_last_that_began(ticks, hidden, wanted):
    timeline, edges = timeline_of(ticks, hidden)
    wanted_s = np.sort(np.array(wanted, dtype=float)) / 64 + 1 / 256  # between two ticks, so that there are no ties
    indices = timeline.indices_at(wanted_s)
    first = min(hidden, len(ticks) - 1)
    for time_s, index in zip(wanted_s, indices, strict=True):
        began = [i for i, edge in enumerate(edges[:-1]) if edge <= time_s]
        assert index == min(max(first, began[-1] if began else 0), len(ticks) - 1)
    assert (np.diff(indices) >= 0).all()
    assert (timeline.first, timeline.last) == (first, len(ticks) - 1)
    assert timeline.duration_s == pytest.approx(edges[-1], abs=1e-9) and not timeline.without_timestamps


@given(lengths, st.integers(0, 5))
def test_the_begin_of_a_visible_frame_selects_that_frame(ticks, hidden):
    timeline, edges = timeline_of(ticks, hidden)
    first = min(hidden, len(ticks) - 1)
    begins_s = np.array(edges[first:-1])
    rounding_s = 0.9 * timeline.time_resolution_s
    for error_s in (0.0, rounding_s, -rounding_s):
        assert timeline.indices_at(begins_s + error_s).tolist() == list(range(first, len(ticks)))


@given(lengths, st.sampled_from([0.25, 0.5, 1.0, 3.0]))
def test_every_clip_of_a_grid_gets_the_frame_at_its_centre(ticks, fps):
    timeline, edges = timeline_of(ticks, 0)
    centres_s = Grid(fps, timeline.duration_s).centres_s()
    indices = timeline.indices_at(centres_s)
    assert len(indices) == Grid(fps, timeline.duration_s).clips and (np.diff(indices) >= 0).all()
    for centre_s, index in zip(centres_s, indices, strict=True):
        begin_s, end_s = list(pairwise(edges))[index]
        assert begin_s - timeline.time_resolution_s <= centre_s < end_s + timeline.time_resolution_s


@given(st.integers(1, 200), st.sampled_from([1.0, 24.0, 29.97, 60.0]))
def test_without_timestamps_frames_are_counted_by_the_rate(count, rate):
    no_times = np.full(count, np.nan)
    timeline = build_timeline(NO_EDIT_LIST, no_times, no_times, rate)
    assert timeline.without_timestamps and timeline.duration_s == pytest.approx(count / rate)
    assert timeline.indices_at((np.arange(count) + 0.5) / rate).tolist() == list(range(count))


def test_a_last_frame_without_length_lasts_as_long_as_the_others():
    timeline = build_timeline(NO_EDIT_LIST, np.array([0.0, 0.5, 1.0]), np.array([0.5, 1.0, 1.0]), 0.0)
    assert timeline.duration_s == 1.5
    for times_s in ([0.0], [0.0, 0.0]):
        assert build_timeline(NO_EDIT_LIST, np.array(times_s), np.array(times_s), 0.0).duration_s == 0.04


@pytest.mark.parametrize("rate", [0.0, -1.0, 1e4, float("nan")])
def test_a_video_without_timestamps_and_rate_is_refused(rate):
    with pytest.raises(VideoError, match="neither timestamps nor a frame rate"):
        build_timeline(NO_EDIT_LIST, np.array([np.nan]), np.array([np.nan]), rate)
    with pytest.raises(VideoError, match="neither timestamps nor a frame rate"):
        build_timeline(NO_EDIT_LIST, np.array([1e9]), np.array([1e9]), rate)


def test_videos_that_are_never_shown_or_too_long_are_refused():
    with pytest.raises(VideoError, match="hides every frame"):
        build_timeline(NO_EDIT_LIST, np.array([-2.0, -1.0]), np.array([-1.0, 0.0]), 0.0)
    starts_s = np.array([0.0, MAX_DURATION_S - 1])
    assert build_timeline(NO_EDIT_LIST, starts_s, starts_s + 1, 0.0).duration_s == MAX_DURATION_S
    with pytest.raises(VideoError, match="50 hours by its timestamps, at most 48"):
        build_timeline(NO_EDIT_LIST, starts_s, starts_s + 1 + 1.505 * 3600, 0.0)


def test_hidden_frames_are_not_selected_and_a_frame_begins_at_its_time():
    timeline = Timeline(
        NO_EDIT_LIST,
        np.array([-1.0, 0.0, 1.0, 2.0, 3.0]),
        first=1,
        last=3,
        duration_s=3.0,
        without_timestamps=False,
        time_resolution_s=0.0,
    )
    assert timeline.indices_at([-5, 0, 0.5, 1, 2.999, 3, 99]).tolist() == [1, 1, 1, 2, 3, 3, 3]
    with pytest.raises(AssertionError, match=r"^wanted times must rise$"):
        timeline.indices_at([2.0, 1.0])


DURATION_BY_EDIT_LIST = {None: 1.5, 1.75: 1.75, 2.0: 2.0, 2.1: 1.5, 1.25: 1.25, 1.0: 1.0, 0.6: 0.6, 0.0: 1.5}


@pytest.mark.parametrize(("edit_list_s", "duration_s"), DURATION_BY_EDIT_LIST.items())
def test_an_edit_list_sets_the_end_unless_it_is_far_too_long(monkeypatch, edit_list_s, duration_s):
    monkeypatch.setattr("costl.pipeline.decode.video.edit_list_duration_s", lambda path: edit_list_s)
    timeline = build_timeline(NO_EDIT_LIST, np.array([0.0, 0.5, 1.0]), np.array([0.5, 1.0, 1.5]), 0.0)
    assert (timeline.duration_s, timeline.last) == (duration_s, 1 if duration_s <= 1 else 2)
    one_frame = build_timeline(NO_EDIT_LIST, np.array([0.0]), np.array([0.25]), 0.0)  # no other length to compare with
    assert one_frame.duration_s == 0.25


def test_times_count_from_the_first_frame_and_compare_as_float32():
    timeline = build_timeline(NO_EDIT_LIST, np.array([10.0, 11.0]), np.array([11.0, 12.0]), 0.0)
    assert timeline.starts_s.tolist() == [0.0, 1.0] and timeline.duration_s == 2.0
    for starts_s, ends_s in (([0.0, 4000.0], [4000.0, 5000.0]), ([-5000.0, 0.0], [0.0, 1.0])):
        timeline = build_timeline(NO_EDIT_LIST, np.array(starts_s), np.array(ends_s), 0.0)
        # From 4096 on, neighbouring float32 numbers are 2^-11 apart.
        assert timeline.time_resolution_s == pytest.approx(1e-6 + 2 * 2.0**-11, rel=1e-9)
    starts_s = np.array([0.0, 4096.0005])
    timeline = replace(timeline, starts_s=starts_s, time_resolution_s=1e-4)
    assert timeline.indices_at(np.array([4096.0005], np.float32)).tolist() == [1]

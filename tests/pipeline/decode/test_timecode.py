"""SMPTE timecode against hand-worked numbers, and against OpenTimelineIO."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.pipeline.decode.timecode import frames_per_hour, from_timecode, has_timecode, may_drop, to_timecode

NTSC = Fraction(1000, 1001)
RATES = [24 * NTSC, Fraction(24), Fraction(25), 30 * NTSC, Fraction(30), Fraction(50), 60 * NTSC, Fraction(60)]
# Rate, drop-frame, frame, timecode.
WORKED = [
    (30 * NTSC, True, 1799, "00:00:59;29"),
    (30 * NTSC, True, 1800, "00:01:00;02"),
    (30 * NTSC, True, 17981, "00:09:59;29"),
    (30 * NTSC, True, 17982, "00:10:00;00"),
    (30 * NTSC, True, 107892, "01:00:00;00"),
    (30 * NTSC, False, 1800, "00:01:00:00"),
    (60 * NTSC, True, 3600, "00:01:00;04"),
    (60 * NTSC, True, 215784, "01:00:00;00"),
    (24 * NTSC, False, 86400, "01:00:00:00"),
    (Fraction(25), False, 25 * 3600 * 25 + 7, "25:00:00:07"),
    (Fraction(60), False, 59, "00:00:00:59"),
    (Fraction(100), False, 199, "00:00:01:99"),
    (Fraction(25), False, 0, "00:00:00:00"),
]


@pytest.mark.parametrize(("rate", "drop_frame", "frame", "text"), WORKED)
def test_timecodes_are_those_worked_out_by_hand(rate, drop_frame, frame, text):
    assert to_timecode(frame, rate, drop_frame=drop_frame) == text
    assert from_timecode(text, rate) == (frame, drop_frame)


@settings(max_examples=300)
@given(st.sampled_from(RATES), st.booleans(), st.integers(0, 10**9))
def test_opentimelineio_reads_and_writes_the_same_timecode(rate, drop, frame):
    opentime = pytest.importorskip("opentimelineio", reason="OpenTimelineIO comes with the extra `test`").opentime
    drop = drop and may_drop(rate)
    frame %= 24 * frames_per_hour(rate, drop_frame=drop)
    text = to_timecode(frame, rate, drop_frame=drop)
    assert text == opentime.RationalTime(frame, float(rate)).to_timecode(float(rate), drop)
    assert opentime.from_timecode(text, float(rate)).value == frame
    assert from_timecode(text, rate) == (frame, drop)


@pytest.mark.parametrize("rate", [30 * NTSC, 60 * NTSC], ids=["29.97", "59.94"])
def test_drop_frame_timecode_stays_within_a_frame_of_the_clock(rate):
    for hour in range(25):
        hours, minutes, seconds, frames = map(
            int, to_timecode(int(3600 * hour * rate), rate, drop_frame=True).replace(";", ":").split(":")
        )
        shown_s = 3600 * hours + 60 * minutes + seconds + frames / (rate / NTSC)
        assert abs(shown_s - 3600 * hour) < 0.1


@pytest.mark.parametrize(
    "text", ["", "1:00:00:00", "00:00:00", "00:00:00:30", "00:60:00:00", "00:01:00;00", "00:00:60:00", "aa:00:00:00"]
)
def test_a_text_that_names_no_frame_is_no_timecode(text):
    assert from_timecode(text, 30 * NTSC) is None


def test_only_whole_and_ntsc_rates_have_timecode():
    assert all(map(has_timecode, [*RATES, Fraction(10), 15 * NTSC]))
    assert not any(map(has_timecode, [Fraction(2997, 100), Fraction(25, 2), Fraction(120), 120 * NTSC]))
    assert [may_drop(rate) for rate in RATES] == [False, False, False, True, False, False, True, False]

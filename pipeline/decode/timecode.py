"""SMPTE timecode: the numbers by which editors name the frames of a video, with and without dropped numbers.

Timecode counts frames, not seconds. At 24000/1001 frames a second, 24 frames make one second of timecode, which lasts 1.001
seconds. Drop-frame timecode skips numbers, never frames, to stay near the clock:

frame            1798       1799       1800       1801         17981      17982
non-drop      00:00:59:28 00:00:59:29 00:01:00:00 00:01:00:01  00:09:59:11 00:09:59:12
drop-frame    00:00:59;28 00:00:59;29 00:01:00;02 00:01:00;03  00:09:59;29 00:10:00;00
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_RATE = 100  # frames a second: two digits number the frames of a second
_NTSC = Fraction(1000, 1001)
_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")


def has_timecode(rate: Fraction) -> bool:
    """Whether SMPTE timecode can count this rate: a whole number of frames a second, or 1000/1001 of one, up to `MAX_RATE`."""
    return rate <= MAX_RATE and rate in (_frames_per_second(rate), _frames_per_second(rate) * _NTSC)


def may_drop(rate: Fraction) -> bool:
    """Whether drop-frame timecode exists for this rate: 29.97 and 59.94 only."""
    return rate in (30 * _NTSC, 60 * _NTSC)


def to_timecode(frame: int, rate: Fraction, *, drop_frame: bool) -> str:
    """The timecode of a frame, counted from 00:00:00:00. It goes on after 24 hours, where a tape would start again."""
    number = frame + _skipped_before(frame, rate) if drop_frame else frame
    seconds, frames = divmod(number, _frames_per_second(rate))
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{';' if drop_frame else ':'}{frames:02}"


def from_timecode(text: str, rate: Fraction) -> tuple[int, bool] | None:
    """(frame, whether it is drop-frame) of a timecode; None for a text that is not the timecode of a frame at this rate."""
    match = _TIMECODE.fullmatch(text)
    if match is None or not has_timecode(rate):
        return None
    hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
    drop_frame = match[4] != ":" and may_drop(rate)
    minutes += 60 * hours
    number = (60 * minutes + seconds) * _frames_per_second(rate) + frames
    frame = number - _dropped(rate) * (minutes - minutes // 10) if drop_frame else number
    # Some texts name no frame, such as 00:01:00;00 with drop-frame.
    is_frame = to_timecode(frame, rate, drop_frame=drop_frame).replace(";", ":") == re.sub("[;.]", ":", text)
    return (frame, drop_frame) if is_frame else None


def frames_per_hour(rate: Fraction, *, drop_frame: bool) -> int:
    """The number of frames from 00:00:00:00 to 01:00:00:00."""
    numbers = 3600 * _frames_per_second(rate)
    return numbers - 54 * _dropped(rate) if drop_frame else numbers


def _frames_per_second(rate: Fraction) -> int:
    """The frames that make one second of timecode, such as 24 at 24000/1001."""
    return math.ceil(rate)


def _dropped(rate: Fraction) -> int:
    """The numbers that are skipped at the start of each minute, except of each tenth."""
    return _frames_per_second(rate) // 15


def _skipped_before(frame: int, rate: Fraction) -> int:
    """How many numbers drop-frame timecode has skipped before it names this frame."""
    dropped = _dropped(rate)
    per_minute = 60 * _frames_per_second(rate) - dropped
    tens, rest = divmod(frame, 10 * per_minute + dropped)
    return dropped * (9 * tens + max(0, rest - dropped) // per_minute)

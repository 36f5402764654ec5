"""Times and frame numbers: texts to seconds, seconds to frames and back."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from costl.data.annotations import Window
from costl.pipeline.decode.timecode import from_timecode
from costl.pipeline.errors import UsageError

TIME_FORMATS = "seconds (75.5) or hh:mm:ss.mmm (0:01:15.5)"
_NUMBER = re.compile(r"[+-]?(\d{1,12}\.?\d{0,20}|\.\d{1,20})", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,3}):(\d{1,2}(?:\.\d{0,20})?)", re.ASCII)
_TIMECODE = re.compile(r"\d\d:\d\d:\d\d[:;]\d\d", re.ASCII)
_SAME_FRAME = Fraction(1, 1000)  # frames: times are floats, and files round them to microseconds


def parse_seconds(text: str, *, decimal_comma: bool = False) -> float:
    """The seconds of a text: 75.5, 1:15.5 or 0:01:15.5; with `decimal_comma` also 75,5. Raises UsageError."""
    plain = text.replace(",", ".") if decimal_comma or _has_clock_comma(text) else text
    if _NUMBER.fullmatch(plain):
        return float(plain)
    match = _CLOCK.fullmatch(plain)
    if match is None:
        hint = "; write a decimal point" if re.fullmatch(r"\d+,\d+", text) else ""
        raise UsageError(f"{text[:40]!r} is not a time, expected {TIME_FORMATS}{hint}")
    hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3])
    if seconds >= 60 or (match[1] and minutes >= 60):
        raise UsageError(f"{text!r} is not a time: minutes and seconds go up to 59")
    return 3600 * hours + 60 * minutes + seconds


def is_timecode(text: str) -> bool:
    """Whether a text counts frames after the seconds, as in 00:01:15:12."""
    return _TIMECODE.fullmatch(text) is not None


def timecode_frame(text: str, rate: Fraction) -> int:
    """The frame, counted from 0, of a timecode hh:mm:ss:ff that begins at 00:00:00:00. Raises UsageError."""
    parsed = from_timecode(text, rate)
    if parsed is None:
        raise UsageError(f"{text!r} is not the timecode of a frame at {show_rate(rate)} frames a second")
    return parsed[0]


def parse_rate(text: str) -> Fraction:
    """The frames a second of a text such as 25, 29.97 or 30000/1001; a usual rate that is rounded becomes exact.

    Raises UsageError.
    """
    from costl.pipeline.decode.frame_rate import usual_rate

    match = re.fullmatch(r"\d{1,9}(\.\d{1,20})?|\d{1,9}/[1-9]\d{0,8}", text.strip(), re.ASCII)
    rate = Fraction(match[0]) if match else Fraction(0)
    if not 0 < rate <= 1000:
        raise UsageError(f"--frame-rate is {text[:40]!r}, expected frames a second, such as 25, 29.97 or 30000/1001.")
    return usual_rate(rate) or rate


def show_rate(rate: Fraction) -> str:
    """A frame rate with at most three decimals."""
    return f"{float(rate):.3f}".rstrip("0").rstrip(".")


def frames_to_window(first: int, last: int, rate: Fraction) -> Window:
    """The window [start, end) in seconds in which the frames `first` to `last`, both counted from 0, are on screen."""
    return float(first / rate), float((last + 1) / rate)


def window_to_frames(window: Window, rate: Fraction) -> tuple[int, int]:
    """The first and the last frame, counted from 0, that are on screen in a window: at least one."""
    first = max(0, math.floor(Fraction(window[0]) * rate + _SAME_FRAME))
    return first, max(first, math.ceil(Fraction(window[1]) * rate - _SAME_FRAME) - 1)


def _has_clock_comma(text: str) -> bool:
    """Whether a comma can only be a decimal one, as in 0:01:15,5."""
    return ":" in text and text.count(",") == 1

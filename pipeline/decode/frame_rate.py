"""The frames of a video as editors number them: by a constant rate, from the timecode of the first frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.decode.packets import AV_ERRORS, demux, open_container, picture_start_s
from costl.pipeline.decode.timecode import from_timecode, may_drop
from costl.pipeline.decode.video import TRUNCATED, refuse_unsafe
from costl.pipeline.errors import VideoError

_USUAL_RATES = [Fraction(n) for n in (10, 12, 15, 24, 25, 30, 48, 50, 60, 100, 120)]
_USUAL_RATES += [Fraction(n * 1000, 1001) for n in (15, 24, 30, 48, 60, 120)]
_SAME_RATE = 4e-4  # relative; 24 and 23.976 differ by 1e-3, and headers round 30000/1001 to 29.97
_EXACT = 0.05  # frames: times are rounded to milliseconds in some files
_MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class FrameNumbers:
    """How the frames of a video are numbered: `rate` frames a second, the first of `frames` with the timecode `start_frame`.

    `start_frame` counts from 00:00:00:00, as drop-frame timecode if `drop_frame`. The first frame comes on screen at
    `picture_start_s`, counted from the time 0 of players. Times in the file are rounded by up to `rounding_s`.
    """

    rate: Fraction
    frames: int
    start_frame: int = 0
    drop_frame: bool = False
    picture_start_s: float = 0.0
    rounding_s: Fraction = _MICROSECOND

    def span(self, start_s: float, end_s: float) -> tuple[int, int]:
        """The frames [first, stop) that are on screen in [start_s, end_s), counted from 0: at least one."""
        late_s = Fraction(self.picture_start_s)
        first = math.floor((Fraction(start_s) - late_s + self.rounding_s) * self.rate)
        stop = math.ceil((Fraction(end_s) - late_s - self.rounding_s) * self.rate)
        first = min(max(first, 0), self.frames - 1)
        return first, min(max(stop, first + 1), self.frames)


def read_frame_numbers(path: Path) -> FrameNumbers:
    """The numbers of a video's frames, from its header and the times of its frames; nothing is decoded.

    29.97 and 59.94 frames a second get drop-frame timecode, unless the file says otherwise. Raises VideoError for a file that
    cannot be read, and for one whose frames have no times or come at a rate that varies.
    """
    refuse_unsafe(path)
    container, stream = open_container(path)
    with container:
        ticks, visible = _frame_ticks(path, container, stream)
        rate = _constant_rate(path, ticks, stream)
        text = stream.metadata.get("timecode") or container.metadata.get("timecode") or ""
        start_frame, drop_frame = from_timecode(text, rate) or (0, may_drop(rate))
        return FrameNumbers(
            rate=rate,
            frames=visible,
            start_frame=start_frame,
            drop_frame=drop_frame,
            picture_start_s=picture_start_s(container, stream),
            rounding_s=_rounding_s(rate, stream.time_base),
        )


def _rounding_s(rate: Fraction, tick_s: Fraction) -> Fraction:
    """By how much the times in a file differ from k / rate: half a tick, unless a frame lasts a whole number of ticks."""
    is_exact = (1 / (rate * tick_s)).denominator == 1
    return _MICROSECOND if is_exact else _MICROSECOND + tick_s / 2


def _frame_ticks(path: Path, container: Any, stream: Any) -> tuple[np.ndarray, int]:
    """The times of all frames in ticks of the stream, rising, int64 [f], and how many of the frames are visible."""
    index = stream.index_entries
    if stream.frames and len(index) == stream.frames:  # an index of all frames, as MP4 has: no need to read the file
        times = [(entry.timestamp, entry.is_discard) for entry in index]
    else:
        try:
            packets = list(demux(container, stream))
        except AV_ERRORS as error:
            raise VideoError(f"{path.name}: {TRUNCATED}") from error
        times = [(packet.dts if packet.pts is None else packet.pts, packet.is_discard) for packet in packets]
    visible = sum(not hidden for _, hidden in times)
    ticks = [tick for tick, _ in times]
    if not visible or None in ticks:
        raise VideoError(f"{path.name}: its frames have no times, and so no numbers. Convert it: ffmpeg -i IN OUT.mp4.")
    return np.sort(np.array(ticks, dtype=np.int64)), visible


def _constant_rate(path: Path, ticks: np.ndarray, stream: Any) -> Fraction:
    """The usual rate at which every frame k begins within half a frame of k / rate; else that of the header, if it is exact.

    The average of times that vary is no usual rate, and fits a short video by chance.
    """
    header = stream.average_rate or stream.base_rate
    span = int(ticks[-1] - ticks[0])
    measured = Fraction(len(ticks) - 1) / (span * stream.time_base) if span else header
    if not measured:
        raise VideoError(f"{path.name}: its frame rate is unknown. Convert it: ffmpeg -i IN -r 25 OUT.mp4.")
    for rate in (usual_rate(header or measured), usual_rate(measured)):
        if rate is not None and _largest_shift(ticks, rate * stream.time_base) < 0.5:
            return rate
    if header and _largest_shift(ticks, header * stream.time_base) < _EXACT:
        return Fraction(header)
    usual = min(_USUAL_RATES, key=lambda rate: abs(rate - measured))
    raise VideoError(
        f"{path.name}: its frame rate varies (about {float(measured):.2f} frames a second), and frame numbers need a constant "
        f"one. Choose a format in seconds, such as csv, or convert it: ffmpeg -i IN -fps_mode cfr -r {usual} OUT.mp4."
    )


def usual_rate(estimate: Fraction) -> Fraction | None:
    """The usual rate that an estimate rounds, such as 30000/1001 for 29.97; None if there is none."""
    nearest = min(_USUAL_RATES, key=lambda rate: abs(rate - estimate))
    return nearest if abs(nearest - estimate) < _SAME_RATE * estimate else None


def _largest_shift(ticks: np.ndarray, frames_per_tick: Fraction) -> float:
    """By how many frames the times differ from those at a constant rate."""
    shifts = (ticks - ticks[0]) * float(frames_per_tick) - np.arange(len(ticks))
    return float(np.abs(shifts).max())

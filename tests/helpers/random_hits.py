"""Hits whose frames are known by construction, at the rates of editors."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hypothesis import strategies as st

from costl.pipeline.decode.frame_rate import FrameNumbers
from costl.search.hits import Hit

NTSC = Fraction(1000, 1001)
# Rate and drop-frame.
RATES = {
    "23.976": (24 * NTSC, False),
    "25": (Fraction(25), False),
    "29.97 drop-frame": (30 * NTSC, True),
    "29.97 non-drop": (30 * NTSC, False),
    "59.94 drop-frame": (60 * NTSC, True),
    "60": (Fraction(60), False),
}
HOURS = 12


@dataclass(frozen=True)
class KnownHit:
    """A hit, and the frames [first, stop) of its video that are on screen in it."""

    hit: Hit
    first: int
    stop: int


@st.composite
def known_hits(draw: st.DrawFn, rate: Fraction, *, on_frames: bool = False) -> list[KnownHit]:
    """One to eight hits in a video of twelve hours. With `on_frames` they begin and end exactly with a frame."""
    last = int(HOURS * 3600 * rate)
    hits = []
    for _ in range(draw(st.integers(1, 8))):
        first = draw(st.integers(0, last - 1) | st.integers(0, min(last - 1, 4000)))
        stop = min(last, first + draw(st.integers(1, 5000)))
        into, before = (0.0, 0.0) if on_frames else (draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9)))
        score = draw(st.floats(0, 1))
        hits.append(KnownHit(hit(float((first + into) / rate), float((stop - before) / rate), score=score), first, stop))
    return hits


def hit(start_s: float, end_s: float, *, query: str = "a cat", name: str = "a.mp4", score: float = 0.5) -> Hit:
    return Hit(query, name, Path("/videos") / name, HOURS * 3600.0, start_s, end_s, score)


def numbers_at(rate: Fraction, drop_frame: bool = False, start_frame: int = 0) -> FrameNumbers:
    """The frames of a video of twelve hours."""
    return FrameNumbers(rate, int(HOURS * 3600 * rate), start_frame, drop_frame)

"""A CMX 3600 edit decision list: the hits one after the other on a timeline, each with a marker for DaVinci Resolve."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from costl.pipeline.decode.timecode import MAX_RATE, frames_per_hour, has_timecode, to_timecode
from costl.pipeline.errors import UsageError
from costl.plots.terminal_text import one_line
from costl.search.hits import Hit

if TYPE_CHECKING:
    from costl.pipeline.decode.frame_rate import FrameNumbers

BEGINNING = "TITLE: CoSTL: "
_TITLE_LENGTH = 70  # characters, by CMX 3600
# No tape: editors then find the file by the name in the comments. Names of files do not fit into the eight characters.
_REEL = "AX"


def edl_text(hits: Sequence[tuple[Hit, FrameNumbers]]) -> str:
    """The list, in the order of the hits; it begins at one hour, as timelines do.

    Raises UsageError for hits in videos of several frame rates, since a list has one, and for a rate without timecode.
    """
    rate = _common_rate(hits)
    drop_frame = hits[0][1].drop_frame if hits else False
    at = frames_per_hour(rate, drop_frame=drop_frame)
    title = ", ".join(dict.fromkeys(one_line(hit.query) for hit, _ in hits))
    lines = [f"{BEGINNING}{title}"[:_TITLE_LENGTH], f"FCM: {'' if drop_frame else 'NON-'}DROP FRAME", ""]
    for number, (hit, numbers) in enumerate(hits, start=1):
        first, stop = numbers.span(hit.start_s, hit.end_s)
        frames = stop - first
        source = _span(numbers.start_frame + first, frames, rate, numbers.drop_frame)
        record = _span(at, frames, rate, drop_frame)
        # Bars separate the fields of a marker.
        marker = f"{one_line(hit.query).replace('|', '/')} ({hit.score:.2f})"
        lines += [
            f"{number:03}  {_REEL:8} V     C        {source} {record}",
            f" |C:ResolveColorBlue |M:{marker} |D:{frames}",
            f"* FROM CLIP NAME: {one_line(hit.video.name)}",
            f"* SOURCE FILE: {one_line(str(hit.video))}",
            "",
        ]
        at += frames
    return "\n".join(lines)


def _common_rate(hits: Sequence[tuple[Hit, FrameNumbers]]) -> Fraction:
    """The frame rate of all videos; 25 without a hit."""
    names = {numbers.rate: hit.name for hit, numbers in hits}
    for rate, name in names.items():
        if not has_timecode(rate):
            raise UsageError(
                f"{name}: {float(rate):.2f} frames a second, and an EDL has timecode for whole rates and for 1000/1001 of them "
                f"only, up to {MAX_RATE}. Choose --format otio."
            )
    if len(names) > 1:
        (rate, name), (other, other_name), *_ = names.items()
        raise UsageError(
            f"an EDL has one frame rate, but {name} has {float(rate):.2f} and {other_name} {float(other):.2f} frames a second. "
            "Name a folder with --out, so that each video gets a file of its own, or choose --format otio."
        )
    return next(iter(names), Fraction(25))


def _span(first: int, frames: int, rate: Fraction, drop_frame: bool) -> str:
    """The timecodes of [first, first + frames). Only the first starts again after 24 hours, so that the last is after it."""
    first %= 24 * frames_per_hour(rate, drop_frame=drop_frame)
    edges = (first, first + frames)
    return " ".join(to_timecode(frame, rate, drop_frame=drop_frame) for frame in edges)

"""What a player of a video needs to know: its length, the time of a frame, and where a browser's clock begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costl.pipeline.decode.packets import read_packets
from costl.pipeline.decode.video import refuse_unsafe
from costl.pipeline.preview.cut import browser_start_s


@dataclass(frozen=True)
class Playback:
    """`start_s`: the `currentTime` of a browser at time 0 of the video. `frame_s`: how long a frame lasts, on average."""

    start_s: float
    duration_s: float
    frame_s: float


def read_playback(path: Path) -> Playback:
    """The length and the clock of a video; reads the whole file, without decoding it.

    Raises VideoError for a file that is not a complete video.
    """
    refuse_unsafe(path)
    timeline = read_packets(path).timeline
    frames = timeline.last + 1 - timeline.first
    return Playback(browser_start_s(path), timeline.duration_s, (timeline.duration_s - timeline.picture_start_s) / frames)

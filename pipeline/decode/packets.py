"""The packets of a video, read without decoding: when each frame is shown, and what must be decoded to have it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Discard, Disposition

from costl.pipeline.decode.video import BAD_NAME, TRUNCATED, Timeline, look_at, timeline, why_no_video
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid

AV_ERRORS = (av.error.FFmpegError, OSError, ValueError)
_STILL = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_NEVER = -(2**62)  # the time of a packet that has none


@dataclass(frozen=True)
class Packets:
    """Packets [n] in the order of the file, which is that of decoding, and the frames they become, by their times.

    `pts`: when shown, in ticks of `tick_s` seconds. `order`: the packet of each frame of the timeline. `starts`: for
    each packet, the key frame's packet from which decoding gives it exactly.
    """

    pts: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    keys: np.ndarray  # bool
    tick_s: float
    timeline: Timeline
    stream: int  # its number in the file

    def cheapest_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that begins in it and costs least to decode.

        That is a key frame where there is one, otherwise the frame with the fewest packets to decode; among equals the
        nearest to the clip's centre. A clip in which none begins gets what is on screen at its centre.
        """
        times = self.timeline
        shown = slice(times.first, times.last + 1)
        starts_s, of = times.starts_s[shown], self.order[shown]
        cost = of - self.starts[of]
        centres_s = grid.centres_s()
        edges = np.searchsorted(starts_s + times.grain_s, np.arange(grid.clips + 1) * grid.clip_s)
        chosen = times.index_at(centres_s) - times.first
        for clip, (begin, end) in enumerate(pairwise(edges)):
            if begin < end:
                away = np.abs(starts_s[begin:end] - centres_s[clip])
                chosen[clip] = begin + np.lexsort((away, cost[begin:end]))[0]
        return starts_s[chosen]


def open_container(path: Path, name: str) -> tuple[Any, Any]:
    """(container, its video stream), ready for one thread. Raises VideoError; `name` is the decoder's."""
    try:
        container = av.open(os.path.abspath(path), metadata_errors="ignore")
    except UnicodeError as error:
        raise VideoError(f"{path.name}: {BAD_NAME}") from error
    except AV_ERRORS as error:
        raise VideoError(f"{path.name}: {why_no_video(path)}") from error
    stream = _film(container)
    if stream is None or stream.codec_context is None:
        container.close()
        found = f"no video stream that {name} can decode (sound only, or a codec it lacks)."
        raise VideoError(f"{path.name}: {why_no_video(path, found)}")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1
    return container, stream


def _film(container: Any) -> Any:
    """The stream that decord shows: of several the one with most bits a second, pictures of the file itself (covers) aside.

    FFmpeg's own choice depends on its version: a newer one prefers the stream marked as default.
    """
    films = [stream for stream in container.streams.video if stream.codec_context and not stream.disposition & _STILL]
    if len(films) < 2:
        return container.streams.best("video")
    return max(films, key=lambda stream: stream.codec_context.bit_rate or 0)


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets from where the container is, without the empty one that ends them."""
    return (packet for packet in container.demux(stream) if packet.size)


def read_packets(path: Path, name: str = f"pyav {av.__version__}") -> Packets:
    """Reads every packet of a file. Raises VideoError for what is not a whole video."""
    look_at(path)
    container, stream = open_container(path, name)
    with container:
        return scan(path, container, stream)


def scan(path: Path, container: Any, stream: Any) -> Packets:
    """The same of an open container, from its beginning."""
    if not whole(path, stream):
        raise VideoError(f"{path.name}: {TRUNCATED}")
    # AVI stores the order of decoding alone; what a newer FFmpeg gives as the times of showing is made up from that.
    timeless = container.format.name == "avi"
    try:
        rows = [(None if timeless else p.pts, p.duration, p.is_keyframe) for p in packets_of(container, stream)]
    except AV_ERRORS as error:
        raise VideoError(f"{path.name}: {TRUNCATED}") from error
    if not rows:
        raise VideoError(f"{path.name}: no frame in it. Replace the file or remove it.")
    pts = np.array([_NEVER if at is None else at for at, _, _ in rows], dtype=np.int64)
    keys = np.array([key for _, _, key in rows])
    tick_s = float(stream.time_base)
    order = np.argsort(pts, kind="stable")
    ends = pts[order] + np.array([length or 0 for _, length, _ in rows])[order]
    # Counted and rounded as decord does it, so that every decoder tells the same times.
    late = max(0, int(pts[order[0]]))
    starts_s, ends_s = (((ticks - late) * tick_s).astype(np.float32).astype(np.float64) for ticks in (pts[order], ends))
    times = timeline(path, starts_s, ends_s, float(stream.average_rate or 0))
    if times.counted:
        order = np.arange(len(pts))
    return Packets(pts, order, _starts(pts, keys), keys, tick_s, times, stream.index)


def whole(path: Path, stream: Any) -> bool:
    """Whether the file holds all that its index speaks of (only an MP4's does)."""
    if "mp4" not in stream.container.format.name:
        return True
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    return end <= path.stat().st_size


def _starts(pts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The key frame before each packet; the one before that for frames shown before their key frame (an open group)."""
    places = np.arange(len(pts))
    key = np.maximum.accumulate(np.where(keys, places, 0))
    leading = pts < pts[key]
    return np.where(leading, key[np.maximum(key - 1, 0)], key)

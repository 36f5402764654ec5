"""The packets of a video, read without decoding: when each frame is shown, and what must be decoded to get it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Discard, Disposition

from costl.pipeline.decode.exact_seek import seeks_exactly
from costl.pipeline.decode.video import TRUNCATED, Timeline, build_timeline, open_failure_reason
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid

AV_ERRORS = (av.error.FFmpegError, OSError, ValueError)
_STILL_PICTURE = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_NO_PTS = -(2**62)
_ROUNDING_S = 1e-5  # a container's start is rounded to microseconds
_MAX_REORDERED_PACKETS = 64  # places between decoding order and display order; H.264 and HEVC need at most 16


@dataclass(frozen=True)
class Packets:
    """The `f` packets of a file in file order, which is decoding order, and the frames they become, in display order.

    `pts` [f]: display times in ticks of `tick_s` seconds. `packet_of_frame` [f]: the packet of each frame of the timeline.
    `decode_from` [f]: for each packet, the packet of the key frame from which decoding gives it exactly, if `can_seek`.
    `in_order`: pictures are shown in the order in which the decoder returns them, not in that of their own times.
    """

    pts: np.ndarray
    packet_of_frame: np.ndarray
    decode_from: np.ndarray
    tick_s: float
    timeline: Timeline
    stream_index: int
    can_seek: bool
    in_order: bool

    def cheapest_times_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that begins in it and costs least to decode.

        That is a key frame where there is one, otherwise the frame with the fewest packets to decode; among equals the
        nearest to the clip's centre. A clip in which no frame begins gets the frame on screen at its centre.
        """
        timeline = self.timeline
        visible = slice(timeline.first, timeline.last + 1)
        starts_s = timeline.starts_s[visible]
        packets = self.packet_of_frame[visible]
        cost = packets - self.decode_from[packets]
        centres_s = grid.centres_s()
        clip_edges_s = np.arange(grid.clips + 1) * grid.clip_s
        frame_edges = np.searchsorted(starts_s + timeline.time_resolution_s, clip_edges_s)
        chosen = timeline.indices_at(centres_s) - timeline.first
        for clip, (begin, end) in enumerate(pairwise(frame_edges)):
            if begin < end:
                distance_s = np.abs(starts_s[begin:end] - centres_s[clip])
                chosen[clip] = begin + np.lexsort((distance_s, cost[begin:end]))[0]
        return starts_s[chosen]


def read_packets(path: Path) -> Packets:
    """Read every packet of a file. Raises VideoError for anything that is not a complete video."""
    container, stream = open_container(path)
    with container:
        is_mp4 = "mp4" in container.format.name  # it has an index of all samples
        if is_mp4 and max((entry.pos + entry.size for entry in stream.index_entries), default=0) > path.stat().st_size:
            raise VideoError(f"{path.name}: {TRUNCATED}")
        in_order = container.format.name == "avi"  # stores no display times: FFmpeg counts the packets
        try:
            rows = [
                (_NO_PTS if packet.pts is None else packet.pts, packet.duration or 0, packet.is_keyframe)
                for packet in demux(container, stream)
            ]
        except AV_ERRORS as error:
            raise VideoError(f"{path.name}: {TRUNCATED}") from error
        # A closed stream has none of these.
        tick_s = float(stream.time_base)
        rate = float(stream.average_rate or 0)
        late_s = picture_start_s(container, stream)
        stream_index = stream.index
        can_seek = seeks_exactly("pyav", container, stream)
    if not rows:
        raise VideoError(f"{path.name}: no frame in it. Replace the file or remove it.")
    pts, durations, is_key = np.array(rows, dtype=np.int64).T
    packet_of_frame = np.argsort(pts, kind="stable")
    # Shifted and rounded as decord does it, so that every decoder gives the same times.
    starts = pts[packet_of_frame] - max(0, int(pts.min()))
    starts_s = _float32_seconds(starts, tick_s)
    ends_s = _float32_seconds(starts + durations[packet_of_frame], tick_s)
    timeline = build_timeline(path, starts_s, ends_s, rate, picture_start_s=late_s)
    if timeline.without_timestamps:
        pts = packet_of_frame = np.arange(len(pts))
        can_seek = False
    if np.abs(packet_of_frame - np.arange(len(pts))).max() > _MAX_REORDERED_PACKETS:
        raise VideoError(f"{path.name}: its timestamps start again in the middle. Repack it: ffmpeg -i IN -c copy OUT.mp4.")
    return Packets(pts, packet_of_frame, _decode_from(pts, is_key), tick_s, timeline, stream_index, can_seek, in_order)


def open_container(path: Path) -> tuple[Any, Any]:
    """(container, its video stream), set to one thread, for a file that `video.refuse_unsafe` accepts.

    Raises VideoError for a file without a video that PyAV can decode.
    """
    try:
        container = av.open(os.path.abspath(path), metadata_errors="ignore")
    except AV_ERRORS as error:
        raise VideoError(f"{path.name}: {open_failure_reason(path)}") from error
    stream = _main_video_stream(container)
    if stream is None or stream.codec_context is None:
        reason = f"no video stream that pyav {av.__version__} can decode (sound only, or a codec it lacks). Convert it: "
        reason += "ffmpeg -i IN OUT.mp4."
        raise VideoError(f"{path.name}: {open_failure_reason(path, reason)}")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1
    return container, stream


def zero_s(container: Any) -> float:
    """The time 0 of players, in the times of the container's frames: when its earliest stream begins, but at least 0.

    Before 0 lies only what is not played, such as the samples that an audio decoder needs to start.
    """
    return max(0.0, (container.start_time or 0) / av.time_base)


def picture_start_s(container: Any, stream: Any) -> float:
    """Seconds from the time 0 of players until the first picture of a video stream: above 0 where the sound begins earlier."""
    seconds = float((stream.start_time or 0) * stream.time_base) - zero_s(container)
    return seconds if seconds > _ROUNDING_S else 0.0


def is_still_right(path: Path, decoder: str) -> bool:
    """Whether frames that version 0.1 sampled from a file, with this decoder, are those that are sampled today.

    Its times counted from the first picture, which may appear after the time 0 of players, and it trusted seeks in all kinds
    of video.
    """
    library = decoder.partition(" ")[0]
    with suppress(VideoError):
        container, stream = open_container(path)
        with container:
            has_sought = library in ("decord", "pyav") and not seeks_exactly(library, container, stream)
            return picture_start_s(container, stream) == 0.0 and not has_sought
    return True


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """The packets from the container's position on, without the empty packet that ends them."""
    return (packet for packet in container.demux(stream) if packet.size)


def _main_video_stream(container: Any) -> Any:
    """The stream that decord shows: the one with the highest bit rate, cover pictures excluded.

    FFmpeg's own choice depends on its version: newer versions prefer the stream marked as default.
    """
    streams = [s for s in container.streams.video if s.codec_context and not s.disposition & _STILL_PICTURE]
    if len(streams) < 2:
        return container.streams.best("video")
    return max(streams, key=lambda stream: stream.codec_context.bit_rate or 0)


def _float32_seconds(ticks: np.ndarray, tick_s: float) -> np.ndarray:
    """Seconds, rounded to float32, as float64."""
    return (ticks * tick_s).astype(np.float32).astype(np.float64)


def _decode_from(pts: np.ndarray, is_key: np.ndarray) -> np.ndarray:
    """The key frame before each packet; the one before that for frames shown before their key frame (an open group)."""
    key = np.maximum.accumulate(np.where(is_key, np.arange(len(pts)), 0))
    leading = pts < pts[key]
    return np.where(leading, key[np.maximum(key - 1, 0)], key)

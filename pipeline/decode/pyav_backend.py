"""PyAV as a decoder. It decodes from a key frame to the wanted frame only, and skips frames that no wanted frame needs.

In a kind of video in which this is not known to be exact (`exact_seek.py`), it decodes every frame from the start.

file      K b b P b b P b b P b b K b b P b b P      K: key frame, P: other frames refer to it, b: no frame does
wanted              ^                   ^
decoded   K     P b P             K     P b          the other packets are read without decoding, or skipped by a seek
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from costl.pipeline.decode.packets import AV_ERRORS, Packets, demux, open_container, read_packets
from costl.pipeline.decode.video import CHUNK_FRAMES, Frames, Picture
from costl.pipeline.grid import Grid
from costl.pipeline.options import ResizeTarget

# Codecs whose decoder can skip, packet by packet, exactly the frames to which no other frame refers.
_CAN_SKIP_NONREF = frozenset(["h264", "hevc"])
_MAX_READ_OVER = 100  # packets that are cheaper to read than to seek over
_MAX_REORDERED = 16  # pictures that a decoder may return before one with an earlier time


@dataclass
class _PacketRun:
    """Packets `start` to `stop`, decoded in one go, and the frames wanted from them: packet -> frame index, rising."""

    start: int
    stop: int
    wanted: dict[int, int] = field(default_factory=dict)


class PyavVideo:
    """An `OpenVideo` by PyAV. `target`: the network input that its frames are scaled for; None keeps their size."""

    decoder = f"pyav {av.__version__}"

    def __init__(self, path: Path, target: ResizeTarget | None = None):
        self._path = path
        self._packets = read_packets(path)
        self._timeline = self._packets.timeline
        self._reader = _Reader(path, self._packets)
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self.picture_start_s = self._timeline.picture_start_s
        self.duration_s = self._timeline.duration_s
        self.repaired = 0
        _, first_picture = next(self._pictures(np.array([self._timeline.first]), allowed=1))
        self.repaired = 0
        self.height, self.width = first_picture.shape[:2]
        if target is not None:
            self._size = self.height, self.width = target.scaled_size(self.height, self.width)

    def close(self) -> None:
        """Free the decoder."""
        self._reader.container.close()

    def stop_reading_ahead(self) -> None:
        """Does nothing: PyAV never decodes ahead."""

    def cheapest_times_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that costs least to decode (`Packets.cheapest_times_s`)."""
        return self._packets.cheapest_times_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK_FRAMES) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, see `OpenVideo.sample`."""
        return self._timeline.sample(wanted_s, chunk, self._pictures)

    def _pictures(self, indices: np.ndarray, allowed: int) -> Iterator[Picture]:
        """A picture for each of these frame indices, which rise."""
        if self._packets.can_seek:
            for run in self._packet_runs(indices):
                yield from self._decode_run(run, allowed)
        else:
            try:
                yield from self._decode_from_start(indices, allowed)
            except AV_ERRORS as error:
                raise self._timeline.damaged_error(indices) from error

    def _packet_runs(self, indices: np.ndarray) -> list[_PacketRun]:
        """What must be decoded for these frames; runs neither touch nor overlap."""
        runs: list[_PacketRun] = []
        for index in indices.tolist():
            packet = int(self._packets.packet_of_frame[index])
            start = int(self._packets.decode_from[packet])
            if runs and start <= runs[-1].stop + 1:
                runs[-1].stop = max(runs[-1].stop, packet)
            else:
                runs.append(_PacketRun(start, packet))
            runs[-1].wanted[packet] = index
        return runs

    def _decode_run(self, run: _PacketRun, allowed: int) -> Iterator[Picture]:
        index_of_pts = {int(self._packets.pts[packet]): index for packet, index in run.wanted.items()}
        waiting = list(run.wanted.values())
        try:
            for frame in self._reader.frames(run.start, run.stop, needed=run.wanted.keys()):
                if frame.pts not in index_of_pts or frame.is_corrupt:
                    continue
                index = index_of_pts[frame.pts]
                # Frames are returned in display order: one that was passed over will not follow.
                while waiting and waiting[0] < index:
                    yield self._repair(waiting.pop(0), allowed)
                if waiting and waiting[0] == index:
                    yield waiting.pop(0), self._picture(frame)
        except AV_ERRORS as error:
            raise self._timeline.damaged_error(run.wanted.values()) from error
        for index in waiting:
            yield self._repair(index, allowed)

    def _repair(self, index: int, allowed: int) -> Picture:
        """A frame that was not returned: decoded again from one group earlier without skipping, or the frame before it."""
        for candidate in range(index, self._timeline.first - 1, -1):
            packet = int(self._packets.packet_of_frame[candidate])
            start = int(self._packets.decode_from[max(0, int(self._packets.decode_from[packet]) - 1)])
            with suppress(*AV_ERRORS):
                for frame in _Reader(self._path, self._packets).frames(start, packet, needed=None):
                    if frame.pts == self._packets.pts[packet] and not frame.is_corrupt:
                        return candidate, self._picture(frame)
            self.repaired += candidate == index
            if self.repaired > allowed or index - candidate > allowed:
                break
        raise self._timeline.damaged_error([index])

    def _decode_from_start(self, indices: np.ndarray, allowed: int) -> Iterator[Picture]:
        """For each of these rising frame indices the last picture that is shown by then. Decodes every frame.

        A packet without a picture (a frame that the encoder dropped) continues the picture before it.
        """
        frames = self._frames_from_start()
        shown, picture = -1, None
        corrupt, following = -1, next(frames, None)
        for index in indices.tolist():
            while following and (following[0] <= index or picture is None):
                if following[1].is_corrupt:
                    corrupt = following[0]
                else:
                    shown, picture = following
                following = next(frames, None)
            self.repaired += corrupt > shown
            if picture is None or self.repaired > allowed:
                raise self._timeline.damaged_error([index])
            yield shown, self._picture(picture)

    def _frames_from_start(self) -> Iterator[tuple[int, Any]]:
        """(index, frame) of every picture, with rising indices."""
        pts_of_frame = self._packets.pts[self._packets.packet_of_frame]
        times: list[int] = []
        waiting: list[tuple[int, int, Any]] = []
        frames = enumerate(self._reader.frames(0, len(pts_of_frame) - 1, needed=None))
        for number, frame in chain(frames, [(0, None)] * _MAX_REORDERED):
            if frame is not None:
                pts = number if self._timeline.without_timestamps else frame.pts
                heappush(times, pts)
                heappush(waiting, (number if self._packets.in_order else pts, number, frame))
            if waiting and (frame is None or len(waiting) > _MAX_REORDERED):
                yield int(np.searchsorted(pts_of_frame, heappop(times), side="right")) - 1, heappop(waiting)[2]

    def _picture(self, frame: Any) -> np.ndarray:
        """RGB [h w 3], upright, converted as decord and torchcodec do it."""
        turns = round(frame.rotation / 90) % 4
        height, width = self._size or (frame.height, frame.width)
        if self._size and turns % 2:
            height, width = width, height
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
        ).to_ndarray()
        return np.rot90(rgb, turns)


class _Reader:
    """An open file, the position in its packets, and its decoder."""

    def __init__(self, path: Path, packets: Packets):
        self._path = path
        self._packets = packets
        self._packet_of_pts = {pts: packet for packet, pts in enumerate(packets.pts.tolist())}
        self._can_seek = len(self._packet_of_pts) == len(packets.pts)
        self._open()

    def frames(self, start: int, stop: int, *, needed: Collection[int] | None) -> Iterator[Any]:
        """The frames decoded from packets `start` to `stop`. Packets not in `needed` may be skipped; None skips none."""
        self._move_to(start)
        decoder = self._stream.codec_context
        decoder.flush_buffers()
        for packet_index in range(start, stop + 1):
            skip = needed is not None and decoder.name in _CAN_SKIP_NONREF and packet_index not in needed
            decoder.skip_frame = "NONREF" if skip else "DEFAULT"
            packet = self._next_packet()
            if packet is None:
                break
            yield from decoder.decode(packet)
        yield from decoder.decode(None)
        decoder.flush_buffers()

    def _open(self) -> None:
        self.container, self._stream = open_container(self._path)
        self._next_packets = demux(self.container, self._stream)
        self._position = 0  # index of the packet that is read next

    def _next_packet(self) -> Any:
        self._position += 1
        return next(self._next_packets, None)

    def _move_to(self, target: int) -> None:
        """Make packet `target` the next one: by reading, by a seek, or from the start of the file."""
        if not 0 <= target - self._position <= _MAX_READ_OVER and not self._seek(target):
            self._open()
        while self._position < target:
            self._next_packet()

    def _seek(self, target: int) -> bool:
        """Seek to the key frame at packet `target` or somewhat before it; False if the container cannot."""
        if not self._can_seek or target == 0:
            return False
        with suppress(*AV_ERRORS, StopIteration, KeyError):
            self.container.seek(int(self._packets.pts[target]), stream=self._stream, backward=True)
            packets = demux(self.container, self._stream)
            first = next(packets)  # shows where the seek has ended
            self._next_packets = chain([first], packets)
            self._position = self._packet_of_pts[first.pts]
            return self._position <= target
        return False

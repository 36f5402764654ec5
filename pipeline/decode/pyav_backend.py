"""PyAV as a decoder: it decodes from the key frame to the wanted frame only, and on the way nothing that nobody needs.

file      K b b P b b P b b P b b K b b P b b P      K: key frame, P: others refer to it, b: nobody does
wanted              ^                   ^
decoded   K     P b P             K     P b          the rest is read over, or jumped over where that is cheaper
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from costl.pipeline.decode.packets import AV_ERRORS, Packets, open_container, packets_of, scan
from costl.pipeline.decode.video import CHUNK, Frames, allowed_repairs, damaged, look_at
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import Target

# Codecs whose decoder leaves out, packet by packet, exactly the frames to which no other refers.
_SKIPS = frozenset(["h264", "hevc"])
_NEAR = 100  # packets that are sooner read over than jumped over


@dataclass
class _Run:
    """Packets `start` to `stop` are decoded in a row for the sake of these frames: packet -> number on the timeline."""

    start: int
    stop: int
    wanted: dict[int, int]


class AvVideo:
    """An `OpenVideo` by PyAV; `target`: what its frames are scaled for, None for their own size."""

    decoder = f"pyav {av.__version__}"

    def __init__(self, path: Path, target: Target | None = None):
        self.repaired = 0
        self._path = path
        look_at(path)
        self._reader = _Reader(path)
        try:
            self._packets = self._reader.packets
            self._timeline = self._packets.timeline
            self.duration_s = self._timeline.duration_s
            self._size: tuple[int, int] | None = None
            self._reformatter = VideoReformatter()
            self.height, self.width = self._first().shape[:2]
            if target is not None:
                self._size = self.height, self.width = target.of(self.height, self.width)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AvVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder. May be called twice."""
        self._reader.close()

    def rest(self) -> None:
        """Nothing is decoded before it is asked for."""

    def cheapest_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time of the frame that costs least to decode, as `Packets` says."""
        return self._packets.cheapest_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, as `OpenVideo` says."""
        indices = self._timeline.index_at(wanted_s)
        allowed = allowed_repairs(len(indices))
        unique = np.unique(indices)
        pictures = iter(self._counted(unique) if self._timeline.counted else self._sought(unique, allowed))
        index, shown, picture = -1, -1, np.empty(0, dtype=np.uint8)
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            pixels = np.empty((len(wanted), self.height, self.width, 3), dtype=np.uint8)
            times = np.empty(len(wanted))
            for row, number in enumerate(wanted.tolist()):
                if number != index:
                    index = number
                    shown, picture = next(pictures)
                pixels[row], times[row] = picture, self._timeline.starts_s[shown]
            yield Frames(pixels, times)

    def _sought(self, numbers: np.ndarray, allowed: int) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the frame shown, picture) for each of these frame numbers, which rise."""
        for run in self._runs(numbers):
            waiting = sorted(run.wanted.values())
            for number, frame in self._decode(run):
                # Frames come in the order of their times: one that is passed over will not come.
                while waiting and waiting[0] < number:
                    yield self._rescue(waiting.pop(0), allowed)
                if waiting and waiting[0] == number:
                    yield waiting.pop(0), self._picture(frame)
            for number in waiting:
                yield self._rescue(number, allowed)

    def _decode(self, run: _Run) -> Iterator[tuple[int, Any]]:
        numbers = {int(self._packets.pts[packet]): number for packet, number in run.wanted.items()}
        try:
            for frame in self._reader.frames(run.start, run.stop, needed=run.wanted.keys()):
                if frame.pts in numbers and not frame.is_corrupt:
                    yield numbers[frame.pts], frame
        except AV_ERRORS as error:
            raise self._damaged(list(run.wanted.values())) from error

    def _rescue(self, number: int, allowed: int) -> tuple[int, np.ndarray]:
        """A frame that did not come, from further back and with nothing left out; or the nearest before it that does."""
        for candidate in range(number, self._timeline.first - 1, -1):
            packet = int(self._packets.order[candidate])
            start = int(self._packets.starts[max(0, int(self._packets.starts[packet]) - 1)])
            with _Reader(self._path, self._packets) as reader, suppress(*AV_ERRORS):
                for frame in reader.frames(start, packet, needed=None):
                    if frame.pts == self._packets.pts[packet] and not frame.is_corrupt:
                        return candidate, self._picture(frame)
            self.repaired += candidate == number
            if self.repaired > allowed or number - candidate > allowed:
                break
        raise self._damaged([number])

    def _counted(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The same for a file without timestamps: decode every frame from the start, keep the wanted ones."""
        wanted = iter(numbers.tolist())
        next_one = next(wanted, None)
        try:
            for number, frame in enumerate(self._reader.frames(0, len(self._packets.pts) - 1, needed=None)):
                if number == next_one:
                    yield number, self._picture(frame)
                    next_one = next(wanted, None)
                    if next_one is None:
                        return
        except AV_ERRORS as error:
            raise self._damaged(numbers.tolist()) from error
        if next_one is not None:
            raise self._damaged([next_one])

    def _runs(self, numbers: np.ndarray) -> list[_Run]:
        """What has to be decoded for these frames; runs neither touch nor overlap."""
        runs: list[_Run] = []
        for number in numbers.tolist():
            packet = int(self._packets.order[number])
            start = int(self._packets.starts[packet])
            if runs and start <= runs[-1].stop + 1:
                runs[-1].stop = max(runs[-1].stop, packet)
            else:
                runs.append(_Run(start, packet, {}))
            runs[-1].wanted[packet] = number
        return runs

    def _first(self) -> np.ndarray:
        """The first picture on screen, for its size."""
        pictures = self._counted if self._timeline.counted else lambda numbers: self._sought(numbers, 1)
        _, picture = next(iter(pictures(np.array([self._timeline.first]))))
        self.repaired = 0
        return picture

    def _picture(self, frame: Any) -> np.ndarray:
        """RGB [h w 3], upright, as decord and torchcodec make it."""
        turns = round(frame.rotation / 90) % 4
        height, width = self._size or (frame.height, frame.width)
        if self._size and turns % 2:
            height, width = width, height
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
        ).to_ndarray()
        return np.rot90(rgb, turns) if turns else rgb

    def _damaged(self, numbers: Sequence[int]) -> VideoError:
        return damaged(self._path, *self._timeline.starts_s[[min(numbers), max(numbers)]])


class _Reader:
    """A file, where we are in it, and its decoder."""

    def __init__(self, path: Path, packets: Packets | None = None):
        self._path = path
        self._open()
        if packets is None:
            try:
                packets = scan(path, self._container, self._stream)
            except BaseException:
                self.close()
                raise
            self._at = len(packets.pts)
        self.packets = packets
        self._places = {pts: place for place, pts in enumerate(packets.pts.tolist())}
        self._can_jump = len(self._places) == len(packets.pts)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def frames(self, start: int, stop: int, *, needed: Any) -> Iterator[Any]:
        """What comes out of packets `start` to `stop`; unless `needed` is None, those it lacks may be left out."""
        self._go_to(start)
        decoder = self._stream.codec_context
        decoder.flush_buffers()
        skips = needed is not None and decoder.name in _SKIPS
        for place in range(start, stop + 1):
            decoder.skip_frame = "NONREF" if skips and place not in needed else "DEFAULT"
            packet = self._next()
            if packet is None:
                break
            yield from decoder.decode(packet)
        yield from decoder.decode(None)
        decoder.flush_buffers()

    def _open(self) -> None:
        self._container, self._stream = open_container(self._path, AvVideo.decoder)
        self._coming = packets_of(self._container, self._stream)
        self._at = 0
        self._held: Any = None

    def _next(self) -> Any:
        packet, self._held = self._held or next(self._coming, None), None
        self._at += 1
        return packet

    def _go_to(self, place: int) -> None:
        if not 0 <= place - self._at <= _NEAR and not self._jump(place):
            self.close()
            self._open()
        while self._at < place:
            self._next()

    def _jump(self, place: int) -> bool:
        """To the key frame at `place`, or somewhat before it; False where the container cannot."""
        if not self._can_jump or place == 0:
            return False
        with suppress(*AV_ERRORS):
            self._container.seek(int(self.packets.pts[place]), stream=self._stream, backward=True)
            self._coming = packets_of(self._container, self._stream)
            self._held = next(self._coming, None)
            self._at = self._places.get(self._held.pts, place + 1) if self._held else place + 1
            return self._at <= place
        return False

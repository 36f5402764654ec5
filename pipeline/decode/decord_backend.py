"""decord as a decoder: fast, it honours rotation, but returns wrong frames without a word in five cases, each met here.

frame rate varies            frames are found by their timestamps, never by index = time x rate
clip begins before its cut   the hidden frames count in the index but never come out: indices are shifted (`_plan`)
clip ends before its data    asking past the edit list returns earlier frames: the timeline says where to stop
open group of pictures       the frames shown just before a key frame are only reachable from the group before
no timestamps (most .avi)    seeking lands anywhere: such files are read from the start, frame by frame
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import decord
import numpy as np

from costl.pipeline.decode.video import (
    BAD_NAME,
    CHUNK,
    TRUNCATED,
    Frames,
    Timeline,
    allowed_repairs,
    damaged,
    look_at,
    timeline,
    why_no_video,
)
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import Target

# After a seek into an open group, decord counts wrong up to two frames past the key frame's place on screen, which is
# as many frames later as there are B-frames in a row (3 and 4 by default in x264 and x265).
_LEADING = 8
_DECODER_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)


class DecordVideo:
    """An `OpenVideo` by decord; `target`: what its frames are scaled for, None for their own size."""

    decoder = f"decord {decord.__version__}"

    def __init__(self, path: Path, target: Target | None = None):
        self.repaired = 0
        self._path = path
        self._reader: decord.VideoReader | None = None
        self._size: dict[str, int] = {}
        look_at(path)
        self._open()
        self._timeline, self._keys = _times(self._decord(), path)
        self.duration_s = self._timeline.duration_s
        # A hidden key frame is counted by decord in a way of its own.
        hidden_key = bool(((self._keys > 0) & (self._keys <= self._timeline.first)).any())
        self._from_start = self._timeline.counted or hidden_key
        self._at = -1  # the number of the frame that the reader gave last, -1 for none
        self.height, self.width = self._shape()
        if target is not None and target.of(self.height, self.width) != self._shape():
            self.height, self.width = target.of(self.height, self.width)
            self._size = {"width": self.width, "height": self.height}
            self._open()

    def __enter__(self) -> DecordVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder and everything it has read ahead. May be called twice."""
        self._reader = None

    def rest(self) -> None:
        """Let go of what was read ahead, where decord can seek: left alone it decodes on, to the end of the file."""
        if not self._from_start:
            self._decord().seek(0)
            self._at = -1

    def cheapest_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time of the frame that costs least to decode; PyAV reads the packets that tell it."""
        from costl.pipeline.decode.packets import read_packets

        return read_packets(self._path).cheapest_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, as `OpenVideo` says."""
        indices = self._timeline.index_at(wanted_s)
        for shown, pixels in self._walk(indices, chunk) if self._from_start else self._seek(indices, chunk):
            yield Frames(pixels, self._timeline.starts_s[shown])

    def _shape(self) -> tuple[int, int]:
        # An empty batch has the shape of the frames and decodes none.
        height, width = self._decord().get_batch([]).shape[1:3]
        return int(height), int(width)

    def _decord(self) -> decord.VideoReader:
        assert self._reader is not None, "this video is closed"
        return self._reader

    def _open(self) -> None:
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # The least tolerance that is not none: decord raises as soon as it would give one frame for another.
            self._reader = decord.VideoReader(os.path.abspath(self._path), num_threads=1, fault_tol=1e-9, **self._size)
        except (*_DECODER_ERRORS, AssertionError, UnicodeError) as error:
            raise VideoError(f"{self._path.name}: {_why_not_opened(self._path, error)}") from error

    def _seek(self, indices: np.ndarray, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(frame numbers [n], pixels [n h w 3]) chunk by chunk, by way of the key frames."""
        last, picture, allowed = -1, np.empty(0, dtype=np.uint8), allowed_repairs(len(indices))
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            try:
                # Never back: a second look at the same frame costs a whole group, and in a cut clip finds another one.
                unseen = wanted[wanted > last]
                pixels = self._batch(unseen) if len(unseen) else np.empty((0, *picture.shape), dtype=np.uint8)
                if len(unseen) < len(wanted):
                    pixels = np.concatenate([np.stack([picture] * (len(wanted) - len(unseen))), pixels])
                last, picture = int(wanted[-1]), pixels[-1].copy()
            except decord.DECORDLimitReachedError:
                wanted, pixels = self._one_by_one(wanted, allowed)
                self._open()
                last = self._at = -1
            except _DECODER_ERRORS as error:
                raise self._damaged(wanted) from error
            yield wanted, pixels

    def _batch(self, wanted: np.ndarray) -> np.ndarray:
        unique, places = np.unique(wanted, return_inverse=True)
        requests, kept = self._plan(unique.tolist(), self._at)
        pixels = self._decord().get_batch(requests).asnumpy()
        self._at = int(unique[-1])
        ours = np.asarray(kept)[places]
        return pixels if len(ours) == len(pixels) and (np.diff(ours) == 1).all() else pixels[ours]

    def _one_by_one(self, wanted: np.ndarray, allowed: int) -> tuple[np.ndarray, np.ndarray]:
        """Each frame by itself; one that does not come is replaced by the nearest before it that does."""
        shown, pixels = [], []
        for index in wanted.tolist():
            for candidate in range(index, self._timeline.first - 1, -1):
                self._open()  # a reader that has failed once keeps failing
                self._at = -1
                try:
                    pixels.append(self._batch(np.array([candidate]))[0])
                except decord.DECORDLimitReachedError as error:
                    self.repaired += candidate == index
                    if self.repaired > allowed or index - candidate > allowed:
                        raise self._damaged(wanted) from error
                except _DECODER_ERRORS as error:
                    raise self._damaged(wanted) from error
                else:
                    shown.append(candidate)
                    break
        return np.array(shown), np.stack(pixels)

    def _walk(self, indices: np.ndarray, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same for files that cannot be sought in: decode every frame from the start, keep the wanted ones."""
        self._open()
        picture, decoded = None, self._timeline.first
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            pixels = np.empty((len(wanted), self.height, self.width, 3), dtype=np.uint8)
            for row, index in enumerate(wanted.tolist()):
                try:
                    while decoded <= index:
                        picture = self._decord().next()
                        decoded += 1
                except (*_DECODER_ERRORS, StopIteration) as error:
                    raise self._damaged(wanted) from error
                assert picture is not None, "frame numbers start at the first shown frame"
                pixels[row] = picture.asnumpy()
            yield wanted, pixels

    def _plan(self, indices: Sequence[int], last: int) -> tuple[list[int], list[int]]:
        """What to ask decord for (rising) frame numbers: its numbers, and where in its answer ours are.

        `last` is the number this reader gave before, -1 for none.
        """
        requests: list[int] = []
        kept: list[int] = []
        first, count = self._timeline.first, len(self._timeline.starts_s)
        # Up to here decord counts the frames that come out, from 0; after it all that are in the file.
        second = int(self._keys[self._keys > 0].min(initial=count)) if first else 0
        group = self._key_before(last)
        for index in indices:
            key = self._key_before(index)
            hidden = first if index < second + _LEADING and index - first < second - 1 else 0
            if not hidden and key > max(second, group) and index - key < _LEADING:
                requests.append(key - 1)
            requests.append(index - hidden)
            kept.append(len(requests) - 1)
            group = key
        return requests, kept

    def _key_before(self, index: int) -> int:
        keys = self._keys
        return int(keys[max(0, np.searchsorted(keys, index, side="right") - 1)]) if len(keys) else 0

    def _damaged(self, wanted: np.ndarray) -> VideoError:
        begin_s, end_s = self._timeline.starts_s[wanted[[0, -1]]]
        return damaged(self._path, begin_s, end_s)


def _times(reader: decord.VideoReader, path: Path) -> tuple[Timeline, np.ndarray]:
    """The timeline, and the numbers of its key frames."""
    # A missing timestamp comes out as some -1e17 s.
    starts_s, ends_s = reader.get_frame_timestamp(range(len(reader))).astype(np.float64).T
    keys = np.asarray(reader.get_key_indices(), dtype=np.int64)
    return timeline(path, starts_s, ends_s, reader.get_avg_fps()), keys


def _why_not_opened(path: Path, error: BaseException) -> str:
    said = str(error)
    if "cannot find video stream" in said:
        found = f"no video stream that {DecordVideo.decoder} can decode (sound only, or a codec it lacks such as AV1)."
        return why_no_video(path, found)
    if "av_read_frame failed" in said:
        return TRUNCATED
    if isinstance(error, UnicodeError):
        return BAD_NAME
    return why_no_video(path)

"""decord as a decoder. It is fast and applies rotation, but silently returns wrong frames in five cases, all handled here.

variable frame rate           frames are chosen by their timestamps, never by index = time x rate
begin hidden by an edit list  the hidden frames count in the index but are never returned: indices are shifted
                              (`_plan_requests`)
end hidden by an edit list    requests past the edit list return earlier frames: the timeline says where to stop
open group of pictures        the frames shown just before a key frame are only reachable from the group before
no timestamps (most .avi)     a seek may end anywhere: such files are decoded from the start, frame by frame
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import decord
import numpy as np

from costl.pipeline.decode.video import (
    BAD_NAME,
    CHUNK_FRAMES,
    TRUNCATED,
    Frames,
    Timeline,
    allowed_repairs,
    build_timeline,
    damaged_error,
    open_failure_reason,
    refuse_unsafe,
)
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import ResizeTarget

# After a seek into an open group, decord miscounts up to two frames past the key frame's position in display order. That
# position is as many frames later as there are B-frames in a row (3 and 4 by default in x264 and x265).
_MAX_LEADING_FRAMES = 8
_DECODER_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)


class DecordVideo:
    """An `OpenVideo` by decord. `target`: the network input that its frames are scaled for; None keeps their size."""

    decoder = f"decord {decord.__version__}"

    def __init__(self, path: Path, target: ResizeTarget | None = None):
        self.repaired = 0
        self._path = path
        self._reader: decord.VideoReader | None = None
        self._size: dict[str, int] = {}
        refuse_unsafe(path)
        self._open()
        self._timeline, self._key_frames = _read_timeline(self._open_reader(), path)
        self.duration_s = self._timeline.duration_s
        # decord numbers frames differently once a key frame is hidden, so seeking by index would fail.
        hidden_key = bool(((self._key_frames > 0) & (self._key_frames <= self._timeline.first)).any())
        self._cannot_seek = self._timeline.without_timestamps or hidden_key
        self._last_index = -1  # the frame that the reader returned last, -1 for none
        self.height, self.width = self._frame_size()
        if target is not None and target.scaled_size(self.height, self.width) != self._frame_size():
            self.height, self.width = target.scaled_size(self.height, self.width)
            self._size = {"width": self.width, "height": self.height}
            self._open()

    def __enter__(self) -> DecordVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder and everything it has read ahead. May be called twice."""
        self._reader = None

    def stop_reading_ahead(self) -> None:
        """Drop what decord has decoded ahead, where it can seek. Otherwise it decodes on to the end of the file."""
        if not self._cannot_seek:
            self._open_reader().seek(0)
            self._last_index = -1

    def cheapest_times_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that costs least to decode; PyAV reads the packets for it."""
        from costl.pipeline.decode.packets import read_packets

        return read_packets(self._path).cheapest_times_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK_FRAMES) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, see `OpenVideo.sample`."""
        indices = self._timeline.indices_at(wanted_s)
        decode = self._decode_from_start if self._cannot_seek else self._decode_by_seeking
        for decoded, pixels in decode(indices, chunk):
            yield Frames(pixels, self._timeline.starts_s[decoded])

    def _open(self) -> None:
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # The smallest tolerance above zero: decord raises as soon as it would return one frame for another.
            self._reader = decord.VideoReader(os.path.abspath(self._path), num_threads=1, fault_tol=1e-9, **self._size)
        except (*_DECODER_ERRORS, AssertionError, UnicodeError) as error:
            raise VideoError(f"{self._path.name}: {_open_failure(self._path, error)}") from error

    def _open_reader(self) -> decord.VideoReader:
        assert self._reader is not None, "this video is closed"
        return self._reader

    def _frame_size(self) -> tuple[int, int]:
        # An empty batch has the shape of the frames and decodes none.
        height, width = self._open_reader().get_batch([]).shape[1:3]
        return int(height), int(width)

    def _decode_by_seeking(self, indices: np.ndarray, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(frame indices [t], pixels [t h w 3]) chunk by chunk, each from the nearest key frame before it."""
        last = -1
        last_picture = np.empty(0, dtype=np.uint8)
        allowed = allowed_repairs(len(indices))
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            try:
                # Never seek back to the last frame: that costs a whole group, and returns another frame if some are hidden.
                new = wanted[wanted > last]
                pixels = self._read_batch(new) if len(new) else np.empty((0, *last_picture.shape), dtype=np.uint8)
                if len(new) < len(wanted):
                    repeats = np.stack([last_picture] * (len(wanted) - len(new)))
                    pixels = np.concatenate([repeats, pixels])
                last = int(wanted[-1])
                last_picture = pixels[-1].copy()
            except decord.DECORDLimitReachedError:
                wanted, pixels = self._decode_one_by_one(wanted, allowed)
                self._open()
                last = self._last_index = -1
            except _DECODER_ERRORS as error:
                raise self._damaged(wanted) from error
            yield wanted, pixels

    def _read_batch(self, wanted: np.ndarray) -> np.ndarray:
        """The pixels [t h w 3] of rising frame indices [t]."""
        unique, inverse = np.unique(wanted, return_inverse=True)
        requests, positions = self._plan_requests(unique.tolist(), self._last_index)
        pixels = self._open_reader().get_batch(requests).asnumpy()
        self._last_index = int(unique[-1])
        rows = np.asarray(positions)[inverse]
        already_in_order = len(rows) == len(pixels) and (np.diff(rows) == 1).all()
        return pixels if already_in_order else pixels[rows]

    def _plan_requests(self, indices: Sequence[int], last: int) -> tuple[list[int], list[int]]:
        """(decord's numbers to request, positions of the wanted frames among them) for rising frame indices.

        `last` is the index that this reader returned before, -1 for none.
        """
        requests: list[int] = []
        positions: list[int] = []
        first = self._timeline.first
        count = len(self._timeline.starts_s)
        # Before the second key frame decord counts the frames that it returns, from 0; after it all frames of the file.
        second_key = int(self._key_frames[self._key_frames > 0].min(initial=count)) if first else 0
        last_key = self._key_frame_before(last)
        for index in indices:
            key = self._key_frame_before(index)
            in_first_group = index < second_key + _MAX_LEADING_FRAMES and index - first < second_key - 1
            hidden = first if in_first_group else 0
            if not hidden and key > max(second_key, last_key) and index - key < _MAX_LEADING_FRAMES:
                requests.append(key - 1)
            requests.append(index - hidden)
            positions.append(len(requests) - 1)
            last_key = key
        return requests, positions

    def _key_frame_before(self, index: int) -> int:
        if not len(self._key_frames):
            return 0
        position = np.searchsorted(self._key_frames, index, side="right") - 1
        return int(self._key_frames[max(0, position)])

    def _decode_one_by_one(self, wanted: np.ndarray, allowed: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode each frame with a new reader; replace one that fails by the nearest frame before it that does not."""
        decoded, pixels = [], []
        for index in wanted.tolist():
            for candidate in range(index, self._timeline.first - 1, -1):
                self._open()  # a reader that has failed once keeps failing
                self._last_index = -1
                try:
                    pixels.append(self._read_batch(np.array([candidate]))[0])
                except decord.DECORDLimitReachedError as error:
                    self.repaired += candidate == index
                    if self.repaired > allowed or index - candidate > allowed:
                        raise self._damaged(wanted) from error
                except _DECODER_ERRORS as error:
                    raise self._damaged(wanted) from error
                else:
                    decoded.append(candidate)
                    break
        return np.array(decoded), np.stack(pixels)

    def _decode_from_start(self, indices: np.ndarray, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Like `_decode_by_seeking`, for files without seeking: decodes every frame and returns the wanted ones."""
        self._open()
        picture = None
        next_index = self._timeline.first
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            pixels = np.empty((len(wanted), self.height, self.width, 3), dtype=np.uint8)
            for row, index in enumerate(wanted.tolist()):
                try:
                    while next_index <= index:
                        picture = self._open_reader().next()
                        next_index += 1
                except (*_DECODER_ERRORS, StopIteration) as error:
                    raise self._damaged(wanted) from error
                assert picture is not None, "frame indices start at the first visible frame"
                pixels[row] = picture.asnumpy()
            yield wanted, pixels

    def _damaged(self, wanted: np.ndarray) -> VideoError:
        begin_s, end_s = self._timeline.starts_s[wanted[[0, -1]]]
        return damaged_error(self._path, begin_s, end_s)


def _read_timeline(reader: decord.VideoReader, path: Path) -> tuple[Timeline, np.ndarray]:
    """(the timeline, the indices of its key frames)."""
    # decord returns about -1e17 s for a missing timestamp.
    starts_s, ends_s = reader.get_frame_timestamp(range(len(reader))).astype(np.float64).T
    key_frames = np.asarray(reader.get_key_indices(), dtype=np.int64)
    return build_timeline(path, starts_s, ends_s, reader.get_avg_fps()), key_frames


def _open_failure(path: Path, error: BaseException) -> str:
    """The end of the error message for a file that decord could not open."""
    message = str(error)
    if "cannot find video stream" in message:
        reason = f"no video stream that {DecordVideo.decoder} can decode (sound only, or a codec it lacks such as AV1)."
        return open_failure_reason(path, reason)
    if "av_read_frame failed" in message:
        return TRUNCATED
    if isinstance(error, UnicodeError):
        return BAD_NAME
    return open_failure_reason(path)

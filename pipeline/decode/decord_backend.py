"""decord as a decoder. It is fast and applies rotation, but silently returns wrong frames in some cases, all handled here.

variable frame rate           frames are chosen by their timestamps, never by index = time x rate
begin hidden by an edit list  the hidden frames count in the index but are never returned: indices are shifted
                              (`_plan_requests`)
end hidden by an edit list    requests past the edit list return earlier frames: the timeline says where to stop
open group of pictures        the frames shown just before a key frame are only reachable from the group before
containers other than MP4     a seek may end anywhere: `DecordVideo` refuses them, and `backends.open_video` takes PyAV
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av  # noqa: F401  before decord, whose libraries replace those of the same name that are loaded after it
import decord
import numpy as np

from costl.pipeline.decode.exact_seek import seeks_exactly
from costl.pipeline.decode.packets import open_container, picture_start_s, read_packets
from costl.pipeline.decode.video import CHUNK_FRAMES, TRUNCATED, Frames, Picture, build_timeline
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import ResizeTarget

# After a seek into an open group, decord miscounts up to two frames past the key frame's position in display order. That
# position is as many frames later as there are B-frames in a row (3 and 4 by default in x264 and x265).
_MAX_LEADING_FRAMES = 8
_MIN_WIDTH = 17  # decord cannot copy narrower frames
_DECODER_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)


class DecordVideo:
    """An `OpenVideo` by decord. `target`: the network input that its frames are scaled for; None keeps their size."""

    decoder = f"decord {decord.__version__}"

    def __init__(self, path: Path, target: ResizeTarget | None = None):
        self.repaired = 0
        self._path = path
        self._size: dict[str, int] = {}
        container, stream = open_container(path)
        with container:
            if not seeks_exactly("decord", container, stream):
                found = f"{stream.codec.canonical_name} in {container.format.name.partition(',')[0]}"
                raise self._unsuitable(f"gives no exact frames of {found}")
            self.picture_start_s = picture_start_s(container, stream)
        self._open()
        # decord returns about -1e17 s for a missing timestamp.
        starts_s, ends_s = self._reader.get_frame_timestamp(range(len(self._reader))).astype(np.float64).T
        self._timeline = build_timeline(
            path, starts_s, ends_s, self._reader.get_avg_fps(), picture_start_s=self.picture_start_s
        )
        self._key_frames = np.array(self._reader.get_key_indices() or [0])
        self.duration_s = self._timeline.duration_s
        # decord numbers frames differently once a key frame is hidden, so seeking by index would fail.
        hidden_key = bool(((self._key_frames > 0) & (self._key_frames <= self._timeline.first)).any())
        if hidden_key or self._timeline.without_timestamps:
            raise self._unsuitable("gives no exact frames where key frames are hidden or timestamps are missing")
        size: tuple[int, int] = self._reader.get_batch([]).shape[1:3]  # an empty batch decodes no frame
        self.height, self.width = size if target is None else target.scaled_size(*size)
        if (self.height, self.width) != size:
            self._size = {"width": self.width, "height": self.height}
            self._open()
        if self.width < _MIN_WIDTH:
            raise self._unsuitable(f"cannot return frames that are {self.width} pixels wide")

    def close(self) -> None:
        """Free the decoder and everything it has read ahead."""
        del self._reader

    def stop_reading_ahead(self) -> None:
        """Drop what decord has decoded ahead. Otherwise it decodes on to the end of the file."""
        self._reader.seek(0)
        self._last_index = -1

    def cheapest_times_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that costs least to decode; PyAV reads the packets for it."""
        return read_packets(self._path).cheapest_times_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK_FRAMES) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, see `OpenVideo.sample`."""
        return self._timeline.sample(wanted_s, chunk, partial(self._decode, chunk))

    def _unsuitable(self, problem: str) -> VideoError:
        advice = "Extract with --decoder pyav, or convert the file: ffmpeg -i IN OUT.mp4."
        return VideoError(f"{self._path.name}: {self.decoder} {problem}. {advice}")

    def _open(self) -> None:
        decord.logging.set_level(decord.logging.QUIET)
        try:
            # The smallest tolerance above zero: decord raises as soon as it would return one frame for another.
            self._reader: Any = decord.VideoReader(os.path.abspath(self._path), num_threads=1, fault_tol=1e-9, **self._size)
        except (*_DECODER_ERRORS, AssertionError) as error:
            if "av_read_frame failed" in str(error):
                raise VideoError(f"{self._path.name}: {TRUNCATED}") from error
            raise self._unsuitable("cannot open it") from error
        self._last_index = -1  # the frame that the reader returned last, -1 for none

    def _decode(self, chunk: int, indices: np.ndarray, allowed: int) -> Iterator[Picture]:
        """A picture for each of these rising indices, read in batches of `chunk`."""
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            try:
                pictures = self._read_batch(wanted)
            except decord.DECORDLimitReachedError:
                for index in wanted.tolist():
                    yield self._repair(index, allowed)
                self._open()
                continue
            except _DECODER_ERRORS as error:
                raise self._timeline.damaged_error(wanted) from error
            yield from zip(wanted.tolist(), pictures, strict=True)

    def _read_batch(self, wanted: np.ndarray) -> list[np.ndarray]:
        """The pictures [h w 3] of rising frame indices [t]."""
        requests, positions = self._plan_requests(wanted.tolist())
        pixels = self._reader.get_batch(requests).asnumpy()
        self._last_index = int(wanted[-1])
        return [pixels[position] for position in positions]

    def _plan_requests(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """(decord's numbers to request, positions of the wanted frames among them) for rising frame indices."""
        requests: list[int] = []
        positions: list[int] = []
        first = self._timeline.first
        count = len(self._timeline.starts_s)
        # Before the second key frame decord counts the frames that it returns, from 0; after it all frames of the file.
        second_key = int(self._key_frames[self._key_frames > 0].min(initial=count)) if first else 0
        last_key = self._key_frame_before(self._last_index)
        for index in indices:
            key = self._key_frame_before(index)
            in_first_group = index < second_key + _MAX_LEADING_FRAMES and index - first < second_key - 1
            hidden = first if in_first_group else 0
            if not hidden and key > max(second_key, last_key) and index - key < _MAX_LEADING_FRAMES:
                requests.append(key - 1)
            positions.append(len(requests))
            requests.append(index - hidden)
            last_key = key
        return requests, positions

    def _key_frame_before(self, index: int) -> int:
        position = np.searchsorted(self._key_frames, index, side="right") - 1
        return int(self._key_frames[max(0, position)])

    def _repair(self, index: int, allowed: int) -> Picture:
        """A frame decoded by a new reader, or else the nearest frame before it that can be decoded."""
        for candidate in range(index, self._timeline.first - 1, -1):
            self._open()  # a reader that has failed once keeps failing
            try:
                return candidate, self._read_batch(np.array([candidate]))[0]
            except decord.DECORDLimitReachedError:
                self.repaired += candidate == index
            except _DECODER_ERRORS:
                break
            if self.repaired > allowed or index - candidate > allowed:
                break
        raise self._timeline.damaged_error([index])

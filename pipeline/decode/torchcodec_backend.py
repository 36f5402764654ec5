"""torchcodec as a decoder, on the CPU or on NVDEC. Frame times come from the packets, as for the other decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchcodec
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from costl.pipeline.decode.packets import read_packets
from costl.pipeline.decode.video import CHUNK_FRAMES, Frames, Picture, open_failure_reason
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import ResizeTarget

_ERRORS = (RuntimeError, ValueError, IndexError)


class TorchcodecVideo:
    """An `OpenVideo` by torchcodec on `device`. `target`: the input that its frames are scaled for; None keeps their size."""

    def __init__(self, path: Path, target: ResizeTarget | None = None, *, device: str = "cpu"):
        self.decoder = f"torchcodec {torchcodec.__version__}" + ("" if device == "cpu" else f" {device}")
        self.repaired = 0
        self._path = path
        self._device = device
        self._packets = read_packets(path)
        self._timeline = self._packets.timeline
        if self._timeline.without_timestamps:
            raise VideoError(f"{path.name}: no timestamps, which torchcodec needs. Pass --decoder pyav.")
        self.picture_start_s = self._timeline.picture_start_s
        self.duration_s = self._timeline.duration_s
        self._reader: Any = self._open(None)
        _, first_picture = next(self._pictures(1, np.array([self._timeline.first]), allowed=1))
        self.repaired = 0
        size = first_picture.shape[:2]
        self.height, self.width = size if target is None else target.scaled_size(*size)
        if (self.height, self.width) != size:
            self._reader = self._open((self.height, self.width))

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None

    def stop_reading_ahead(self) -> None:
        """Does nothing: torchcodec never decodes ahead."""

    def cheapest_times_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time [t] of the frame that costs least to decode (`Packets.cheapest_times_s`)."""
        return self._packets.cheapest_times_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK_FRAMES) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, see `OpenVideo.sample`."""
        return self._timeline.sample(wanted_s, chunk, partial(self._pictures, chunk))

    def _pictures(self, chunk: int, indices: np.ndarray, allowed: int) -> Iterator[Picture]:
        """A picture for each of these rising indices, read in batches of `chunk`."""
        pts_of_frame = self._packets.pts[self._packets.packet_of_frame]
        for begin in range(0, len(indices), chunk):
            wanted = indices[begin : begin + chunk]
            try:
                # By index and without the hidden frames: by time, torchcodec refuses the last frame of a stream copy.
                batch = self._reader.get_frames_at((wanted - self._timeline.first).tolist())
            except _ERRORS as error:
                raise self._timeline.damaged_error(wanted) from error
            ticks = np.rint(batch.pts_seconds.numpy() / self._packets.tick_s)
            decoded = np.searchsorted(pts_of_frame, ticks, side="right") - 1
            self.repaired += int((decoded < wanted).sum())
            if self.repaired > allowed or (decoded > wanted).any() or (wanted - decoded > allowed).any():
                raise self._timeline.damaged_error(wanted)
            yield from zip(decoded.tolist(), batch.data.cpu().numpy(), strict=True)

    def _open(self, size: tuple[int, int] | None) -> VideoDecoder:
        try:
            return VideoDecoder(
                str(self._path.absolute()),
                stream_index=self._packets.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device=self._device,
                transforms=[Resize(size)] if size else None,
            )
        except _ERRORS as error:
            raise VideoError(f"{self._path.name}: {open_failure_reason(self._path)}") from error

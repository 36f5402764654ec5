"""torchcodec as a decoder, on the CPU or on NVDEC; when each frame is shown comes from the packets, as for every other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torchcodec
from torchcodec.decoders import VideoDecoder
from torchcodec.transforms import Resize

from costl.pipeline.decode.packets import read_packets
from costl.pipeline.decode.video import CHUNK, Frames, allowed_repairs, damaged, why_no_video
from costl.pipeline.errors import VideoError
from costl.pipeline.grid import Grid
from costl.pipeline.options import Target

_ERRORS = (RuntimeError, ValueError, IndexError)


class TorchcodecVideo:
    """An `OpenVideo` by torchcodec on `device`; `target`: what its frames are scaled for, None for their own size."""

    def __init__(self, path: Path, target: Target | None = None, *, device: str = "cpu"):
        self.decoder = f"torchcodec {torchcodec.__version__}" + ("" if device == "cpu" else f" {device}")
        self.repaired = 0
        self._path, self._device = path, device
        self._packets = read_packets(path, self.decoder)
        self._timeline = self._packets.timeline
        if self._timeline.counted:
            raise VideoError(f"{path.name}: no timestamps, which torchcodec needs. Pass --decoder pyav.")
        self.duration_s = self._timeline.duration_s
        self._reader: VideoDecoder | None = self._open(None)
        try:
            self.height, self.width = self._batch(np.array([self._timeline.first]))[1].shape[1:3]
        except _ERRORS as error:
            raise damaged(path, 0.0, 0.0) from error
        if target is not None and target.of(self.height, self.width) != (self.height, self.width):
            self.height, self.width = target.of(self.height, self.width)
            self._reader = self._open((self.height, self.width))

    def __enter__(self) -> TorchcodecVideo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder. May be called twice."""
        self._reader = None

    def rest(self) -> None:
        """Nothing is decoded before it is asked for."""

    def cheapest_s(self, grid: Grid) -> np.ndarray:
        """For each clip the time of the frame that costs least to decode, as `Packets` says."""
        return self._packets.cheapest_s(grid)

    def sample(self, wanted_s: Sequence[float] | np.ndarray, chunk: int = CHUNK) -> Iterator[Frames]:
        """The frames on screen at `wanted_s`, as `OpenVideo` says."""
        indices = self._timeline.index_at(wanted_s)
        allowed = allowed_repairs(len(indices))
        for begin in range(0, len(indices), chunk):
            unique, places = np.unique(indices[begin : begin + chunk], return_inverse=True)
            bounds_s = self._timeline.starts_s[unique[[0, -1]]]
            try:
                shown, pixels = self._batch(unique)
            except _ERRORS as error:
                raise damaged(self._path, *bounds_s) from error
            self.repaired += int((shown < unique).sum())
            if self.repaired > allowed or (shown > unique).any() or (unique - shown > allowed).any():
                raise damaged(self._path, *bounds_s)
            yield Frames(pixels[places], self._timeline.starts_s[shown[places]])

    def _open(self, size: tuple[int, int] | None) -> VideoDecoder:
        try:
            return VideoDecoder(
                str(self._path.absolute()),
                stream_index=self._packets.stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device=self._device,
                transforms=[Resize(size)] if size else None,
            )
        except _ERRORS as error:
            raise VideoError(f"{self._path.name}: {why_no_video(self._path)}") from error

    def _batch(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the frames that came [n], pixels [n h w 3]) for rising frame numbers."""
        assert self._reader is not None, "this video is closed"
        ordered = self._packets.pts[self._packets.order]
        # By number, hidden frames left out: by time, the last frame of a clip cut without decoding is refused.
        batch = self._reader.get_frames_at((numbers - self._timeline.first).tolist())
        ticks = np.rint(batch.pts_seconds.numpy() / self._packets.tick_s).astype(np.int64)
        return np.searchsorted(ordered, ticks, side="right") - 1, batch.data.cpu().numpy()

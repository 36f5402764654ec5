"""Pieces of a video for people to look at: single frames as they were on screen, and clips cut to the frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from costl.pipeline.errors import CostlError, VideoError

# Time 0 is the first picture a player shows, as in `frames`: seconds here and in predictions are the same.
_SEEK_EARLY_S = 1.0
_TICKS = 90_000  # a second has this many in the clips written
_QUALITY = {"crf": "20", "preset": "veryfast"}


@dataclass(frozen=True)
class About:
    """What a container says of its video."""

    duration_s: float
    width: int
    height: int


def probe(path: Path) -> About:
    """Looks at a file without decoding it. Raises VideoError for one that holds no video."""
    with _open(path) as source:
        stream = _video_stream(source, path)
        length = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        whole = Fraction(source.duration, av.time_base) if source.duration else Fraction(0)
        return About(float(length or whole), stream.width, stream.height)


def frames_at(path: Path, seconds: Sequence[float], *, height: int = 0) -> list[np.ndarray]:
    """The pictures on screen at rising `seconds`, uint8 RGB [h w 3], scaled to `height` if given.

    By the reader that extraction uses. Raises VideoError for a file that cannot be read.
    """
    from costl.pipeline.decode.backends import open_video  # decord: only where a picture is wanted

    with open_video(path) as video:
        wanted = [min(max(0.0, second), video.duration_s - 1e-3) for second in seconds]
        pictures = [picture for frames in video.sample(wanted) for picture in frames.pixels]
    return [_scaled(picture, height) if height else picture for picture in pictures]


def cut(path: Path, out: Path, *, start_s: float, end_s: float) -> None:
    """Writes [start_s, end_s) of a video to `out` (MP4, H.264, its sound as AAC).

    Encoded anew, because a copied stream can only begin at a key frame, often seconds too early. Read packet by packet:
    memory does not depend on any length. Raises VideoError where nothing is on screen in that time, CostlError when
    `out` cannot be written.
    """
    aside = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _open(path) as source, av.open(str(aside), "w", format="mp4") as target:
            _Cutter(source, target, path).write(start_s, end_s)
        _force(aside)
        aside.replace(out)
        _force(out.parent)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path.name}: cannot be cut at {start_s:.1f} s ({error}). Convert it first.") from error
    except OSError as error:
        raise CostlError(f"{out}: cannot be written ({error}). Free space or choose another folder.") from error
    finally:
        aside.unlink(missing_ok=True)


def _force(path: Path) -> None:
    """A file, or the names in a folder, to the disk: otherwise a loss of power leaves a named clip of half the bytes."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Cutter:
    """One cut: what is decoded between two times goes to the encoders, moved so that it begins at 0."""

    def __init__(self, source: Any, target: Any, path: Path):
        self._source, self._target, self._path = source, target, path
        self._picture = _video_stream(source, path)
        self._sound = source.streams.best("audio")
        self._written = 0

    def write(self, start_s: float, end_s: float) -> None:
        """The whole cut; seconds count from the first picture shown."""
        first = next((frame for frame in self._source.decode(self._picture) if frame.pts is not None), None)
        if first is None:
            raise VideoError(f"{self._path.name}: no picture in it. Give a file with pictures.")
        self._zero = float(first.pts * first.time_base)
        self._open_outputs(*_upright(first).shape[:2])
        self._source.seek(self._ticks(max(0.0, start_s - _SEEK_EARLY_S)), stream=self._picture, backward=True)
        for frame, at_s in self._shown(start_s, end_s):
            if isinstance(frame, av.AudioFrame):
                self._write_sound(frame, start_s, end_s)
            else:
                self._write_picture(frame, max(0.0, at_s - start_s))
        if not self._written:
            raise VideoError(f"{self._path.name}: no picture between {start_s:.2f} s and {end_s:.2f} s.")
        for stream in self._target.streams:
            self._target.mux(stream.encode(None))

    def _shown(self, start_s: float, end_s: float) -> Iterator[tuple[Any, float]]:
        """Sound around these times and pictures within, with the one that is still on screen when they begin."""
        still: tuple[Any, float] | None = None
        running = {stream.type for stream in (self._picture, self._sound) if stream is not None}
        for packet in self._source.demux(*(s for s in (self._picture, self._sound) if s is not None)):
            for frame in (frame for frame in packet.decode() if frame.pts is not None):
                at_s = float(frame.pts * frame.time_base) - self._zero
                if at_s >= end_s - 1e-6:
                    running.discard(packet.stream.type)
                elif packet.stream.type == "audio":
                    yield frame, at_s
                elif at_s <= start_s + 1e-6:
                    still = frame, at_s
                else:
                    if still is not None:
                        yield still
                    still = None
                    yield frame, at_s
            if not running:
                break
        if still is not None:
            yield still

    def _open_outputs(self, height: int, width: int) -> None:
        picture = self._target.add_stream("libx264", rate=self._picture.average_rate or 25)
        picture.height, picture.width, picture.pix_fmt = height, width, "yuv420p"
        picture.time_base = picture.codec_context.time_base = Fraction(1, _TICKS)
        picture.options = dict(_QUALITY)
        self._picture_out: Any = picture
        self._sound_out: Any = None
        if self._sound is not None:
            layout = "mono" if self._sound.codec_context.layout.nb_channels == 1 else "stereo"
            rate = self._sound.codec_context.sample_rate
            self._sound_out = self._target.add_stream("aac", rate=rate, layout=layout)
            self._even = av.AudioResampler(format="fltp", layout=layout, rate=rate)

    def _write_picture(self, frame: Any, at_s: float) -> None:
        picture = av.VideoFrame.from_ndarray(_upright(frame), format="rgb24").reformat(format="yuv420p")
        picture.pts, picture.time_base = round(at_s * _TICKS), Fraction(1, _TICKS)
        self._target.mux(self._picture_out.encode(picture))
        self._written += 1

    def _write_sound(self, frame: Any, start_s: float, end_s: float) -> None:
        for piece in self._even.resample(frame):
            samples, rate = piece.to_ndarray(), piece.sample_rate
            at_s = float((piece.pts or 0) * (piece.time_base or 0)) - self._zero
            first = round((at_s - start_s) * rate)
            skip, stop = max(0, -first), min(samples.shape[1], round((end_s - start_s) * rate) - first)
            if stop > skip:
                kept: Any = np.ascontiguousarray(samples[:, skip:stop])
                sound = av.AudioFrame.from_ndarray(kept, format="fltp", layout=piece.layout.name)
                sound.sample_rate, sound.pts, sound.time_base = rate, first + skip, Fraction(1, rate)
                self._target.mux(self._sound_out.encode(sound))

    def _ticks(self, second: float) -> int:
        return round((self._zero + second) / self._picture.time_base)


def _upright(frame: Any) -> np.ndarray:
    """The picture as it is shown, uint8 RGB, with even sides, as H.264 wants them."""
    picture = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        why = "no such file" if not path.exists() else "empty" if not path.stat().st_size else str(error)
        raise VideoError(f"{path.name}: cannot be read as a video ({why}). Check or convert it.") from error


def _video_stream(source: Any, path: Path) -> Any:
    stream = source.streams.best("video")
    if stream is None:
        raise VideoError(f"{path.name}: no video stream in it. Give a file with pictures.")
    return stream


def _scaled(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(2, round(picture.shape[1] * height / picture.shape[0]))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()

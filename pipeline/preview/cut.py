"""Excerpts of a video for people to look at: single frames as they were on screen, and cuts that are exact to the frame."""

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

# Time 0 is the first picture that a player shows, as in `decode.video`: seconds here and in predictions are the same.
_SEEK_MARGIN_S = 1.0
_TICKS_PER_SECOND = 90_000  # of the videos that are written
_X264_OPTIONS = {"crf": "20", "preset": "veryfast"}


@dataclass(frozen=True)
class VideoInfo:
    """Length and size of a video as its container gives them."""

    duration_s: float
    width: int
    height: int


def probe(path: Path) -> VideoInfo:
    """Read a container's header without decoding. Raises VideoError for a file without a video."""
    with _open(path) as source:
        stream = _video_stream(source, path)
        stream_s = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        container_s = Fraction(source.duration, av.time_base) if source.duration else Fraction(0)
        return VideoInfo(float(stream_s or container_s), stream.width, stream.height)


def frames_at(path: Path, seconds: Sequence[float], *, height: int = 0) -> list[np.ndarray]:
    """The pictures on screen at rising `seconds`, each uint8 RGB [h w 3], scaled to `height` unless that is 0.

    They are decoded as extraction does it. Raises VideoError for a file that cannot be read.
    """
    from costl.pipeline.decode.backends import open_video  # imports decord

    with open_video(path) as video:
        wanted = [min(max(0.0, second), video.duration_s - 1e-3) for second in seconds]
        pictures = [picture for frames in video.sample(wanted) for picture in frames.pixels]
    return [_resize(picture, height) if height else picture for picture in pictures]


def cut(path: Path, out: Path, *, start_s: float, end_s: float) -> None:
    """Write [start_s, end_s) of a video to `out` (MP4, H.264, its sound as AAC).

    The video is encoded again, because a copied stream can only begin at a key frame, often seconds too early. It is read
    packet by packet, so that memory does not depend on its length. Raises VideoError if no picture is on screen in that
    time, CostlError if `out` cannot be written.
    """
    temporary = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _open(path) as source, av.open(str(temporary), "w", format="mp4") as target:
            _Cutter(source, target, path).write(start_s, end_s)
        _fsync(temporary)
        temporary.replace(out)
        _fsync(out.parent)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path.name}: cannot be cut at {start_s:.1f} s ({error}). Convert it first.") from error
    except OSError as error:
        raise CostlError(f"{out}: cannot be written ({error}). Free space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that a power failure leaves no incomplete video."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Cutter:
    """Decodes one excerpt and encodes it with times that begin at 0."""

    def __init__(self, source: Any, target: Any, path: Path):
        self._source, self._target, self._path = source, target, path
        self._video_in = _video_stream(source, path)
        self._audio_in = source.streams.best("audio")
        self._pictures_written = 0

    def write(self, start_s: float, end_s: float) -> None:
        """Write the excerpt; seconds count from the first picture."""
        first = next((frame for frame in self._source.decode(self._video_in) if frame.pts is not None), None)
        if first is None:
            raise VideoError(f"{self._path.name}: no picture in it. Choose a file with pictures.")
        self._first_picture_s = float(first.pts * first.time_base)
        self._open_outputs(*_upright(first).shape[:2])
        self._source.seek(self._ticks(max(0.0, start_s - _SEEK_MARGIN_S)), stream=self._video_in, backward=True)
        for frame, time_s in self._decode(start_s, end_s):
            if isinstance(frame, av.AudioFrame):
                self._write_audio(frame, start_s, end_s)
            else:
                self._write_picture(frame, max(0.0, time_s - start_s))
        if not self._pictures_written:
            raise VideoError(f"{self._path.name}: no picture between {start_s:.2f} s and {end_s:.2f} s.")
        for stream in self._target.streams:
            self._target.mux(stream.encode(None))

    def _decode(self, start_s: float, end_s: float) -> Iterator[tuple[Any, float]]:
        """(frame, its time in seconds) of the sound up to `end_s` and of the pictures that are on screen in between."""
        at_start: tuple[Any, float] | None = None  # the picture that is on screen at `start_s`
        streams = [stream for stream in (self._video_in, self._audio_in) if stream is not None]
        unfinished = {stream.type for stream in streams}
        for packet in self._source.demux(*streams):
            for frame in (frame for frame in packet.decode() if frame.pts is not None):
                time_s = float(frame.pts * frame.time_base) - self._first_picture_s
                if time_s >= end_s - 1e-6:
                    unfinished.discard(packet.stream.type)
                elif packet.stream.type == "audio":
                    yield frame, time_s
                elif time_s <= start_s + 1e-6:
                    at_start = frame, time_s
                else:
                    if at_start is not None:
                        yield at_start
                    at_start = None
                    yield frame, time_s
            if not unfinished:
                break
        if at_start is not None:
            yield at_start

    def _open_outputs(self, height: int, width: int) -> None:
        video = self._target.add_stream("libx264", rate=self._video_in.average_rate or 25)
        video.height, video.width, video.pix_fmt = height, width, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
        video.options = dict(_X264_OPTIONS)
        self._video_out: Any = video
        self._audio_out: Any = None
        if self._audio_in is not None:
            layout = "mono" if self._audio_in.codec_context.layout.nb_channels == 1 else "stereo"
            rate = self._audio_in.codec_context.sample_rate
            self._audio_out = self._target.add_stream("aac", rate=rate, layout=layout)
            self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)

    def _write_picture(self, frame: Any, time_s: float) -> None:
        picture = av.VideoFrame.from_ndarray(_upright(frame), format="rgb24").reformat(format="yuv420p")
        picture.pts, picture.time_base = round(time_s * _TICKS_PER_SECOND), Fraction(1, _TICKS_PER_SECOND)
        self._target.mux(self._video_out.encode(picture))
        self._pictures_written += 1

    def _write_audio(self, frame: Any, start_s: float, end_s: float) -> None:
        """Write those samples of an audio frame that lie in [start_s, end_s)."""
        for resampled in self._resampler.resample(frame):
            samples = resampled.to_ndarray()
            rate = resampled.sample_rate
            time_s = float((resampled.pts or 0) * (resampled.time_base or 0)) - self._first_picture_s
            first = round((time_s - start_s) * rate)  # sample number in the excerpt
            skip = max(0, -first)
            stop = min(samples.shape[1], round((end_s - start_s) * rate) - first)
            if stop > skip:
                inside: Any = np.ascontiguousarray(samples[:, skip:stop])
                audio = av.AudioFrame.from_ndarray(inside, format="fltp", layout=resampled.layout.name)
                audio.sample_rate, audio.pts, audio.time_base = rate, first + skip, Fraction(1, rate)
                self._target.mux(self._audio_out.encode(audio))

    def _ticks(self, second: float) -> int:
        return round((self._first_picture_s + second) / self._video_in.time_base)


def _upright(frame: Any) -> np.ndarray:
    """The picture as a player shows it, uint8 RGB [h w 3], cropped to even sides as H.264 needs them."""
    picture = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        reason = "no such file" if not path.exists() else "empty" if not path.stat().st_size else str(error)
        raise VideoError(f"{path.name}: cannot be read as a video ({reason}). Check or convert it.") from error


def _video_stream(source: Any, path: Path) -> Any:
    stream = source.streams.best("video")
    if stream is None:
        raise VideoError(f"{path.name}: no video stream in it. Choose a file with pictures.")
    return stream


def _resize(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(2, round(picture.shape[1] * height / picture.shape[0]))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()

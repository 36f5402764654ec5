"""Excerpts of a video for people to look at: single frames as they were on screen, and cuts that are exact to the frame."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Discard
from PIL import Image

from costl.pipeline.decode.packets import open_container
from costl.pipeline.decode.video import refuse_unsafe
from costl.pipeline.errors import VideoError
from costl.pipeline.formats.files import publish

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
    source, stream = _open(path)
    with source:
        return VideoInfo((source.duration or 0) / av.time_base, stream.width, stream.height)


def frames_at(path: Path, seconds: Sequence[float], *, height: int) -> list[np.ndarray]:
    """The pictures on screen at rising `seconds`, each uint8 RGB [h w 3], scaled to `height`.

    They are decoded as extraction does it. Raises VideoError for a file that cannot be read.
    """
    from costl.pipeline.decode.backends import open_video

    with open_video(path) as video:
        size = max(2, round(video.width * height / video.height)), height
        pictures = [Image.fromarray(picture) for frames in video.sample(seconds) for picture in frames.pixels]
    return [np.asarray(picture.resize(size, Image.Resampling.BOX)) for picture in pictures]


def cut(path: Path, out: Path, *, start_s: float, end_s: float) -> None:
    """Write [start_s, end_s) of a video to `out` (MP4, H.264, its sound as AAC).

    The video is encoded again, because a copied stream can only begin at a key frame, often seconds too early. Its frames
    are read one by one; the new file is held in memory until it is complete. Raises VideoError if no picture is on screen
    in that time, CostlError if `out` cannot be written.
    """
    content = io.BytesIO()
    try:
        source, video_in = _open(path)
        with source, av.open(content, "w", format="mp4") as target:
            _write_excerpt(source, video_in, target, path, start_s, end_s)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path.name}: cannot be cut at {start_s:.1f} s ({error}). Convert it first.") from error
    publish(out, content.getvalue())


def _open(path: Path) -> tuple[Any, Any]:
    """(container, its video stream)."""
    refuse_unsafe(path)
    return open_container(path)


def _write_excerpt(source: Any, video_in: Any, target: Any, path: Path, start_s: float, end_s: float) -> None:
    """Decode [start_s, end_s) and encode it with times that begin at 0."""
    first = next((frame for frame in source.decode(video_in) if frame.pts is not None), None)
    if first is None:
        raise VideoError(f"{path.name}: no picture in it. Choose a file with pictures.")
    video_out = target.add_stream("libx264", rate=video_in.average_rate or 25, options=_X264_OPTIONS)
    video_out.height, video_out.width = _upright(first).shape[:2]
    video_out.pix_fmt = "yuv420p"
    video_out.time_base = video_out.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
    audio_in = source.streams.best("audio")
    if audio_in is not None:
        audio_in.discard = Discard.default
        layout = "mono" if audio_in.codec_context.layout.nb_channels == 1 else "stereo"
        audio_out = target.add_stream("aac", rate=audio_in.codec_context.sample_rate, layout=layout)
    source.seek(round((first.time + max(0.0, start_s - _SEEK_MARGIN_S)) * av.time_base))
    pictures = 0
    for frame in _frames_between(source, [video_in, audio_in], first.time + start_s, first.time + end_s):
        time_s = max(0.0, frame.time - first.time - start_s)
        if isinstance(frame, av.AudioFrame):
            frame.pts, frame.time_base = round(time_s * frame.sample_rate), Fraction(1, frame.sample_rate)
            target.mux(audio_out.encode(frame))
        else:
            picture = av.VideoFrame.from_ndarray(_upright(frame), format="rgb24")
            picture.pts, picture.time_base = round(time_s * _TICKS_PER_SECOND), Fraction(1, _TICKS_PER_SECOND)
            target.mux(video_out.encode(picture))
            pictures += 1
    if not pictures:
        raise VideoError(f"{path.name}: no picture between {start_s:.2f} s and {end_s:.2f} s.")
    for stream in target.streams:
        target.mux(stream.encode(None))


def _frames_between(source: Any, streams: Sequence[Any], start_s: float, end_s: float) -> Iterator[Any]:
    """The sound that begins in [start_s, end_s), and the pictures that are on screen in it; times as in the container."""
    at_start: Any = None  # the picture that is on screen at `start_s`
    used = [stream for stream in streams if stream is not None]
    unfinished = {stream.type for stream in used}
    for packet in source.demux(*used):
        for frame in (frame for frame in packet.decode() if frame.pts is not None):
            if frame.time >= end_s - 1e-6:
                unfinished.discard(packet.stream.type)
            elif packet.stream.type == "video" and frame.time <= start_s + 1e-6:
                at_start = frame
            elif frame.time > start_s - 1e-6:
                if at_start is not None and packet.stream.type == "video":
                    yield at_start
                    at_start = None
                yield frame
        if not unfinished:
            break
    if at_start is not None:
        yield at_start


def _upright(frame: Any) -> np.ndarray:
    """The picture as a player shows it, uint8 RGB [h w 3], cropped to even sides as H.264 needs them."""
    picture = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])

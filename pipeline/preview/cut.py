"""Excerpts of a video for people to look at: single frames and short cuts, which show what was on screen at each time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Discard
from PIL import Image

from costl.pipeline.decode.backends import open_video
from costl.pipeline.decode.packets import open_container, zero_s
from costl.pipeline.decode.video import OpenVideo, refuse_unsafe
from costl.pipeline.errors import VideoError
from costl.pipeline.formats.files import publish
from costl.pipeline.options import FrameOptions

_FRAME_OPTIONS = FrameOptions("pyav")  # it reads more codecs than decord, and gives the same frames
MADE_BY = "CoSTL, cut from another video"  # stored in the file
_MIN_RATE = Fraction(10)  # pictures a second of a cut, for videos whose few pictures come at irregular times
_SEEK_MARGIN_S = 1.0
_X264_OPTIONS = {"crf": "20", "preset": "veryfast"}


def browser_start_s(path: Path) -> float:
    """The `currentTime` of a browser at time 0 of the video. Raises VideoError for a file without a video.

    It is 0 unless even the earliest stream begins later. Then browsers wait until it begins, and other players do not.
    """
    refuse_unsafe(path)
    source, _ = open_container(path)
    with source:
        return zero_s(source)


def frames_at(path: Path, seconds: Sequence[float], *, height: int) -> list[np.ndarray]:
    """The pictures on screen at rising `seconds`, each uint8 RGB [h w 3], scaled to `height`.

    Raises VideoError for a file that cannot be read.
    """
    with open_video(path, _FRAME_OPTIONS) as video:
        size = max(2, round(video.width * height / video.height)), height
        pictures = [Image.fromarray(pixels) for frames in video.sample(seconds) for pixels in frames.pixels]
    return [np.asarray(picture.resize(size, Image.Resampling.BOX)) for picture in pictures]


def cut(path: Path, out: Path, *, start_s: float, end_s: float) -> None:
    """Write [start_s, end_s) of a video to `out` (MP4, H.264, its sound as AAC).

    The pictures are those on screen at regular times from `start_s` on, encoded again: a copied stream can only begin at a
    key frame, often seconds too early. The new file is held in memory until it is complete. Raises VideoError if the video
    has no picture in that time, CostlError if `out` cannot be written.
    """
    content = io.BytesIO()
    try:
        source, video_in = open_container(path)
        with source, open_video(path, _FRAME_OPTIONS) as video, av.open(content, "w", format="mp4") as target:
            _write_excerpt(source, video_in, video, target, start_s, end_s)
    except av.error.FFmpegError as error:
        raise VideoError(f"{path.name}: cannot be cut at {start_s:.1f} s ({error}). Convert it first.") from error
    publish(out, content.getvalue())


def _write_excerpt(source: Any, video_in: Any, video: OpenVideo, target: Any, start_s: float, end_s: float) -> None:
    rate = max(_MIN_RATE, video_in.average_rate or _MIN_RATE)
    times_s = np.arange(start_s, min(end_s, video.duration_s), float(1 / rate))
    if not len(times_s):
        raise VideoError(f"{Path(source.name).name}: no picture between {start_s:.2f} s and {end_s:.2f} s.")
    target.metadata["comment"] = MADE_BY
    video_out = target.add_stream("libx264", rate=rate, options=_X264_OPTIONS)
    # H.264 needs even sides.
    video_out.height = video.height // 2 * 2
    video_out.width = video.width // 2 * 2
    video_out.pix_fmt = "yuv420p"
    audio_in = source.streams.best("audio")
    if audio_in is not None:
        layout = "mono" if audio_in.codec_context.layout.nb_channels == 1 else "stereo"
        audio_out = target.add_stream("aac", rate=audio_in.codec_context.sample_rate, layout=layout)
    for frames in video.sample(times_s):
        for pixels in np.ascontiguousarray(frames.pixels[:, : video_out.height, : video_out.width]):
            target.mux(video_out.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    if audio_in is not None:
        for frame in read_sound(source, audio_in, start_s, end_s):
            target.mux(audio_out.encode(frame))
    for stream in target.streams:
        target.mux(stream.encode(None))


def read_sound(source: Any, audio_in: Any, start_s: float, end_s: float) -> Iterator[Any]:
    """The frames of sound that begin in [start_s, end_s), with times that count from `start_s`."""
    audio_in.discard = Discard.default
    start_of_file_s = zero_s(source)
    if start_s > _SEEK_MARGIN_S:  # a seek to 0 would go to the first picture, which may come after the sound
        source.seek(round((start_of_file_s + start_s - _SEEK_MARGIN_S) * av.time_base))
    for frame in source.decode(audio_in):
        time_s = frame.time - start_of_file_s - start_s
        if time_s >= end_s - start_s:
            return
        if time_s >= 0:
            frame.pts = round(time_s * frame.sample_rate)
            frame.time_base = Fraction(1, frame.sample_rate)
            yield frame

"""The decoders that are compared, behind one signature: CoSTL's own, and plain code for each library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from costl.pipeline.decode.backends import open_video, resolve
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions

_CHUNK = 32


@dataclass(frozen=True)
class FrameRequest:
    """The frames that every decoder must return: RGB frames of `path` at `times_s` [t] (increasing).

    `indices` [t] are decord's numbers of the frames. They are looked up in advance, so that the time for it does not count
    for the plain decord code.
    """

    path: Path
    times_s: np.ndarray
    indices: np.ndarray


Decoder = Callable[[FrameRequest], Iterator[np.ndarray]]


def request_frames(path: Path, fps: float, seconds: float) -> FrameRequest:
    """The request for the first `seconds` of a video. Raises VideoError, and CostlError if decord cannot read it."""
    with open_video(path) as video:
        times_s = Grid(fps, min(seconds, video.duration_s)).centres_s()
    return FrameRequest(path, times_s, decord_indices(path, times_s))


def decord_indices(path: Path, times_s: np.ndarray) -> np.ndarray:
    """decord's numbers [t] of the frames on screen at `times_s` [t]. Time 0 is the first shown frame.

    Raises CostlError if decord cannot read the video.
    """
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise CostlError(f"{path.name}: decord cannot read it ({str(error)[:80]}). Measure without this file.") from error
    starts_s = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    first = int(np.argmax(starts_s >= 0))
    indices = np.searchsorted(starts_s - starts_s[first], times_s + 1e-5, side="right") - 1
    return np.maximum(indices, 0)


def _costl(request: FrameRequest, decoder: str) -> Iterator[np.ndarray]:
    with open_video(request.path, FrameOptions(decoder)) as video:
        for frames in video.sample(request.times_s, chunk=_CHUNK):
            yield frames.pixels


def _decord(request: FrameRequest) -> Iterator[np.ndarray]:
    import decord

    reader = decord.VideoReader(str(request.path), num_threads=1)
    yield reader.get_batch(request.indices).asnumpy()


def pyav(request: FrameRequest) -> Iterator[np.ndarray]:
    """Decodes every frame, and converts those that are on screen at the requested times."""
    import av

    with av.open(str(request.path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = container.decode(video=0)
        shown = next(frames)
        following = next(frames, None)
        zero_s = shown.time or 0.0
        for time_s in request.times_s:
            while following is not None and (following.time or 0.0) - zero_s <= time_s + 1e-5:
                shown = following
                following = next(frames, None)
            yield shown.to_ndarray(format="rgb24")[None]


def _torchcodec(request: FrameRequest) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(request.path), dimension_order="NHWC", num_ffmpeg_threads=1)
    seconds = request.times_s + float(decoder.metadata.begin_stream_seconds)
    for begin in range(0, len(seconds), _CHUNK):
        yield decoder.get_frames_played_at(seconds[begin : begin + _CHUNK].tolist()).data.numpy()


PLAIN: dict[str, Decoder] = {
    "decord, get_batch": _decord,
    "PyAV, every frame": pyav,
    "torchcodec, played at": _torchcodec,
}


def available_decoders() -> dict[str, Decoder]:
    """CoSTL's decoders and the plain code of the libraries, by name, without those of libraries that do not work here."""
    ours: dict[str, Decoder] = {}
    plain: dict[str, Decoder] = {}
    for library, (name, decoder) in zip(("decord", "pyav", "torchcodec"), PLAIN.items(), strict=True):
        try:
            resolve(library)
        except UsageError:
            continue
        ours[f"ours: {library}"] = partial(_costl, decoder=library)
        plain[name] = decoder
    return ours | plain

"""Each library's plain use to get frames at wanted times, and our own, all behind one signature: the race's entrants."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from costl.pipeline.decode.backends import open_video, resolve
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.grid import Grid
from costl.pipeline.options import How

_CHUNK = 32


@dataclass(frozen=True)
class Wanted:
    """What every decoder is asked for: frames of `path` at `times_s` (rising seconds [t]), `height` x `width` RGB.

    They are those of `fps` frames a second in the first `seconds`. `indices` are decord's numbers of those frames, found
    beforehand: its plain use is spared the looking up.
    """

    path: Path
    fps: float
    seconds: float
    times_s: np.ndarray
    indices: np.ndarray
    height: int
    width: int


Decoder = Callable[[Wanted], Iterator[np.ndarray]]


def wanted_of(path: Path, fps: float, seconds: float) -> Wanted:
    """What to ask for of the first `seconds` of a video. Raises what decord raises, and VideoError."""
    with open_video(path) as video:
        length_s, height, width = min(seconds, video.duration_s), video.height, video.width
    times_s = Grid(fps, length_s).centres_s()
    return Wanted(path, fps, length_s, times_s, decord_numbers(path, times_s), height, width)


def decord_numbers(path: Path, times_s: np.ndarray) -> np.ndarray:
    """Which frames, as decord counts them, are shown at these times [t], 0 at the first one shown. Raises what it raises."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    starts_s = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    first = int(np.argmax(starts_s >= 0))
    indices = np.searchsorted(starts_s - starts_s[first], times_s + 1e-5, side="right") - 1
    return np.maximum(indices, 0)


def _ours(wanted: Wanted, how: How) -> Iterator[np.ndarray]:
    with open_video(wanted.path, how) as video:
        for frames in video.sample(wanted.times_s, chunk=_CHUNK):
            yield frames.pixels


def _decord(wanted: Wanted) -> Iterator[np.ndarray]:
    import decord

    reader = decord.VideoReader(str(wanted.path), num_threads=1)
    yield reader.get_batch(wanted.indices).asnumpy()


def pyav(wanted: Wanted) -> Iterator[np.ndarray]:
    """Every frame is decoded, those on screen at the wanted times are converted."""
    import av

    with av.open(str(wanted.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        due, zero_s, last = 0, 0.0, None
        for frame in container.decode(stream):
            shown_s = float(frame.time or 0.0)
            zero_s = shown_s if last is None else zero_s
            while due < len(wanted.times_s) and last is not None and shown_s - zero_s > wanted.times_s[due] + 1e-5:
                yield last.to_ndarray(format="rgb24")[None]
                due += 1
            last = frame
            if due == len(wanted.times_s):
                return
        for _ in range(due, len(wanted.times_s)):
            if last is not None:
                yield last.to_ndarray(format="rgb24")[None]


def _torchcodec(wanted: Wanted) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(wanted.path), dimension_order="NHWC", num_ffmpeg_threads=1)
    seconds = wanted.times_s + float(decoder.metadata.begin_stream_seconds)
    for begin in range(0, len(seconds), _CHUNK):
        yield decoder.get_frames_played_at(seconds[begin : begin + _CHUNK].tolist()).data.numpy()


def _ffmpeg(wanted: Wanted) -> Iterator[np.ndarray]:
    """Its filter `fps` takes a frame near the middle of each clip, not always the one on screen there."""
    source = ["-threads", "1", "-i", str(wanted.path), "-t", f"{wanted.seconds:.3f}"]
    sink = ["-filter_threads", "1", "-vf", f"fps={wanted.fps:g}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [FFMPEG_COMMAND, "-v", "error", *source, *sink]
    frame_bytes = wanted.height * wanted.width * 3
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while len(pixels := process.stdout.read(frame_bytes)) == frame_bytes:
            yield np.frombuffer(pixels, np.uint8).reshape(1, wanted.height, wanted.width, 3)
    if process.returncode:
        raise CostlError(f"ffmpeg ended with exit code {process.returncode}")


FFMPEG, FFMPEG_COMMAND = "ffmpeg pipe, fps filter", "ffmpeg"
OURS: dict[str, Decoder] = {f"ours: {name}": partial(_ours, how=How(name)) for name in ("decord", "pyav", "torchcodec")}
PLAIN: dict[str, Decoder] = {
    "decord, get_batch": _decord,
    "PyAV, every frame": pyav,
    "torchcodec, played at": _torchcodec,
    FFMPEG: _ffmpeg,
}


def why_not_here(name: str) -> str:
    """Why one of these cannot be measured on this machine, nothing where it can."""
    if name in OURS:
        try:
            resolve(name.partition(" ")[2])
        except UsageError:
            return "it does not work here"
        return ""
    if name == FFMPEG:
        return "" if shutil.which(FFMPEG_COMMAND) else "ffmpeg is not on the path"
    library = name.partition(",")[0].lower().replace("pyav", "av")
    if find_spec(library) is None:
        return f"{library} is not installed"
    try:
        import_module(f"{library}.decoders" if library == "torchcodec" else library)
    except Exception as error:  # torchcodec says RuntimeError where FFmpeg's libraries are missing
        return "it does not load: " + " ".join(str(error).split())[:120]
    return ""

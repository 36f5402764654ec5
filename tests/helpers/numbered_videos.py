"""Small test videos in which every frame shows its own number, and PyAV as the independent reference decoder.

A frame is a grid of 4 x 4 grey blocks: the sixteen bits of its number, high bit first, dark for 0 and light for 1.
The blocks survive lossy coding, chroma subsampling and rotation.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 4
TICKS = 90_000  # per second; some containers need their frame rate as the time base instead


def draw_number(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """The image of frame `number`, uint8 [height width 3]."""
    bits = np.array([(number >> shift) & 1 for shift in reversed(range(SIDE * SIDE))], dtype=np.uint8)
    rows = np.arange(height) * SIDE // height
    columns = np.arange(width) * SIDE // width
    grey = np.where(bits.reshape(SIDE, SIDE)[rows][:, columns] == 1, 215, 40).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def read_number(image: np.ndarray) -> int:
    """The number shown by a decoded image, uint8 [height width 3], read from the middle of each block."""
    height, width = image.shape[:2]
    rows = ((np.arange(SIDE) + 0.5) * height / SIDE).astype(int)
    columns = ((np.arange(SIDE) + 0.5) * width / SIDE).astype(int)
    bits = (image[rows][:, columns].mean(axis=2) > 127).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def read_numbers(images: Iterable[np.ndarray]) -> list[int]:
    return [read_number(image) for image in images]


@contextmanager
def unchanged_priority() -> Iterator[None]:
    """Undoes what SVT-AV1 does when root runs it: it gives its caller the highest real-time priority and leaves it so.

    The processes that a test starts would inherit that priority: two busy ones stop everything else on two cores.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@unchanged_priority()
def make_video(
    path: Path,
    times_s: Sequence[float],
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio: bool | str = False,
    ticks: int = TICKS,
    container_format: str | None = None,
) -> Path:
    """Writes a video whose frame k shows the number k and starts at `times_s[k]`. `size` is (height, width).

    `audio`: silence from 0 on, by this codec, or True for AAC. `container_format` is FFmpeg's name of the container; by
    default the suffix of `path` selects it.
    """
    height, width = size
    with av.open(str(path), "w", format=container_format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
        x26x = {"preset": "veryfast", "qp": "18"} if "26" in codec else {}
        stream.options = {"g": "10", "bf": "2", "threads": "1", **x26x, **(options or {})}
        audio_codec = "aac" if audio is True else audio
        audio_stream = container.add_stream(audio_codec, rate=16_000, layout="mono") if audio_codec else None
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(draw_number(number, height, width), format="rgb24")
            frame = frame.reformat(format=pixel_format)
            frame.pts = round(time_s * ticks)
            frame.time_base = Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio_stream is not None:
            _write_silence(container, audio_stream, seconds=max(times_s, default=0.0) + 1.0)
    return path


def make_audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=16_000, layout="mono"), seconds=1.0)
    return path


def frame_times(frames: int, fps: float = 25.0, start_s: float = 0.0) -> list[float]:
    """The start time of each frame of a video with a constant frame rate."""
    return [start_s + k / fps for k in range(frames)]


def variable_frame_times(frames: int, seed: int = 0) -> list[float]:
    """The start time of each frame of a video whose frames last from 10 ms to 400 ms."""
    gaps = np.random.default_rng(seed).choice([0.01, 0.04, 0.1, 0.4], size=frames - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


def cut_without_decoding(source: Path, target: Path, start_s: float) -> Path:
    """As `ffmpeg -ss START -i SOURCE -c copy`: starts at the key frame before START, which an edit list hides."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        offset = round(start_s / stream.time_base)
        container.seek(offset, stream=stream, backward=True)
        for packet in container.demux(stream):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
            output.mux(packet)
    return target


def set_rotation(path: Path, turns: int) -> Path:
    """Sets the rotation of an MP4 to `turns` quarter turns clockwise, in the matrix of its track header (tkhd)."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns % 4]
    upright = _track_matrix(1, 0, 0, 1)
    rotated = _track_matrix(cosine, sine, -sine, cosine)
    data = path.read_bytes()
    offset = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:offset] + rotated + data[offset + len(upright) :])
    return path


def decode_with_pyav(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Every frame that PyAV decodes: seconds since the first frame [frames], and the images."""
    with av.open(str(path)) as container:
        frames = list(container.decode(largest_video_stream(container)))
    times_s = np.array([float(frame.pts * frame.time_base) for frame in frames])
    return times_s - times_s[0], [frame.to_ndarray(format="rgb24") for frame in frames]


def largest_video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The main video stream of a file that also has a cover image or a preview stream."""
    return max(container.streams.video, key=lambda stream: stream.width * stream.height)


def pyav_frame_numbers(path: Path) -> tuple[np.ndarray, list[int]]:
    """Seconds since the first frame [frames], and the number that each frame shows."""
    times_s, images = decode_with_pyav(path)
    return times_s, read_numbers(images)


def frames_on_screen(times_s: np.ndarray, numbers: Sequence[int], wanted_s: Iterable[float]) -> list[int]:
    """The number of the frame on screen at each wanted time: the last frame that starts at or before it."""
    shown = []
    for wanted in wanted_s:
        started = [i for i, start_s in enumerate(times_s) if i == 0 or start_s <= wanted + 1e-6]
        shown.append(numbers[max(started)])
    return shown


def _track_matrix(a: int, b: int, c: int, d: int) -> bytes:
    """The 3 x 3 matrix of a track header with [[a, b], [c, d]] as whole numbers in 16.16 fixed point."""
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream, *, seconds: float) -> None:
    for k in range(int(seconds * 16_000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        frame.pts = k * 1024
        frame.time_base = Fraction(1, 16_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))

"""Small videos made on the spot, every frame painted with its own number, and PyAV as the independent witness.

A frame is a grid of 4 x 4 grey blocks: sixteen bits of the frame number, high bit first, black for 0 and white for 1.
That survives lossy coding, chroma subsampling and any rotation by which the blocks can be put back in place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 4
TICKS = 90_000  # a second has this many ticks, unless a container wants its frame rate as the time base


def paint(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """The picture of frame `number`, uint8 [h w 3]."""
    bits = np.array([(number >> shift) & 1 for shift in reversed(range(SIDE * SIDE))], dtype=np.uint8)
    rows = np.arange(height) * SIDE // height
    columns = np.arange(width) * SIDE // width
    grey = np.where(bits.reshape(SIDE, SIDE)[rows][:, columns] == 1, 215, 40).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def read_number(picture: np.ndarray) -> int:
    """The number painted into a decoded picture, uint8 [h w 3]; the middle of each block decides."""
    height, width = picture.shape[:2]
    rows = ((np.arange(SIDE) + 0.5) * height / SIDE).astype(int)
    columns = ((np.arange(SIDE) + 0.5) * width / SIDE).astype(int)
    bits = (picture[rows][:, columns].mean(axis=2) > 127).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def read_numbers(pictures: Iterable[np.ndarray]) -> list[int]:
    return [read_number(picture) for picture in pictures]


def make_clip(
    path: Path,
    times_s: Sequence[float],
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio: bool = False,
    ticks: int = TICKS,
    form: str | None = None,
) -> Path:
    """A clip whose k-th picture shows the number k from `times_s[k]` on. `size` is (height, width).

    `form` is the container where the suffix does not say it.
    """
    height, width = size
    with av.open(str(path), "w", format=form, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.time_base = stream.codec_context.time_base = Fraction(1, ticks)
        x26x = {"preset": "veryfast", "qp": "18"} if "26" in codec else {}
        stream.options = {"g": "10", "bf": "2", "threads": "1", **x26x, **(options or {})}
        sound = container.add_stream("aac", rate=16_000, layout="mono") if audio else None
        for number, time_s in enumerate(times_s):
            picture = av.VideoFrame.from_ndarray(paint(number, height, width), format="rgb24")
            frame = picture.reformat(format=pixel_format)
            frame.pts, frame.time_base = round(time_s * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _add_sound(container, sound, seconds=max(times_s, default=0.0) + 1.0)
    return path


def make_sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _add_sound(container, container.add_stream("aac", rate=16_000, layout="mono"), seconds=1.0)
    return path


def steady(frames: int, fps: float = 25.0, start_s: float = 0.0) -> list[float]:
    """Times of a clip with a constant frame rate."""
    return [start_s + k / fps for k in range(frames)]


def uneven(frames: int, seed: int = 0) -> list[float]:
    """Times of a clip whose frames last from 10 ms to 400 ms."""
    gaps = np.random.default_rng(seed).choice([0.01, 0.04, 0.1, 0.4], size=frames - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


def cut_without_decoding(source: Path, target: Path, start_s: float) -> Path:
    """What `ffmpeg -ss START -i SOURCE -c copy` does: the key frame before START first, hidden by an edit list."""
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


def rotate(path: Path, turns: int) -> Path:
    """Mark an MP4 as to be shown `turns` quarter turns clockwise, by the matrix in its track header (tkhd)."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns % 4]
    upright, turned = (
        struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        for a, b, c, d in [(1 << 16, 0, 0, 1 << 16), (cosine << 16, sine << 16, -sine << 16, cosine << 16)]
    )
    data = path.read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(upright) :])
    return path


def shown_pictures(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """The witness: PyAV decodes every frame. Seconds since the first shown frame [t], and the pictures."""
    with av.open(str(path)) as container:
        frames = list(container.decode(largest(container)))
    times_s = np.array([float(frame.pts * frame.time_base) for frame in frames])
    return times_s - times_s[0], [frame.to_ndarray(format="rgb24") for frame in frames]


def largest(container: av.container.InputContainer) -> av.VideoStream:
    """The film of a file with several streams of pictures."""
    return max(container.streams.video, key=lambda stream: stream.width * stream.height)


def shown_frames(path: Path) -> tuple[np.ndarray, list[int]]:
    """The same with the number each picture carries."""
    times_s, pictures = shown_pictures(path)
    return times_s, read_numbers(pictures)


def on_screen(times_s: np.ndarray, numbers: Sequence[int], wanted_s: Iterable[float]) -> list[int]:
    """The plain definition: at time x we see the last frame that began at or before x."""
    return [numbers[max(i for i, begin_s in enumerate(times_s) if i == 0 or begin_s <= x + 1e-6)] for x in wanted_s]


def _add_sound(container: av.container.OutputContainer, stream: av.AudioStream, *, seconds: float) -> None:
    for k in range(int(seconds * 16_000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, k * 1024, Fraction(1, 16_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))

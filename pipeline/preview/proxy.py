"""A small copy of a video that browsers can play, with the same frames at the same times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np

from costl.pipeline.decode.backends import open_video
from costl.pipeline.decode.packets import AV_ERRORS, open_container, read_packets
from costl.pipeline.decode.video import refuse_unsafe
from costl.pipeline.errors import CostlError, UsageError, VideoError, next_step
from costl.pipeline.formats.files import atomic_path
from costl.pipeline.library.store_limit import DEFAULT_BYTES, PROXIES, mark_used, remove_least_used
from costl.pipeline.options import FrameOptions
from costl.pipeline.preview.cut import MADE_BY, read_sound
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import file_stamp

HEIGHT = 360  # pixels
_TICKS = 90_000  # a second
_FRAMES_AT_ONCE = 4  # in the size of the video
_KEY_FRAME_EVERY_S = 0.5  # so that seeking is quick
# The best first: every browser plays both, and the first is the faster one to encode.
_ENCODERS = {
    "libx264": (".mp4", {"crf": "27", "preset": "veryfast", "bf": "0", "threads": "2"}),
    "libvpx": (".webm", {"crf": "20", "b": "1M", "deadline": "realtime", "cpu-used": "8", "threads": "2"}),
}
_SOUND = {".mp4": "aac", ".webm": "libopus"}
_SOUND_RATE = 48_000


def proxy_path(video: Path, store: Path) -> Path:
    """Where the proxy of a video is in `store`; another file if the video changes. Raises UsageError without an encoder."""
    name = sha256(f"{video.resolve()}\0{file_stamp(video)}".encode(errors="surrogateescape")).hexdigest()
    return store / PROXIES / f"{name}{_ENCODERS[_encoder()][0]}"


def write_proxy(
    video: Path, store: Path, *, max_bytes: int = DEFAULT_BYTES, progress: ProgressCallback = lambda _: None
) -> Path:
    """Writes the proxy of a video, HEIGHT pixels high or less, unless it is there already; returns its path.

    A frame appears in it when it appears in the video, counted from the time 0 of players. `progress` is called with the
    frames that are done. `store` keeps at most `max_bytes` (see `remove_least_used`). Raises VideoError for a video that
    cannot be decoded, CostlError when the disk refuses.
    """
    refuse_unsafe(video)
    out = proxy_path(video, store)
    if not out.exists():
        try:
            for stale in out.parent.glob(f".{out.name}.*.tmp"):  # of a killed process
                stale.unlink(missing_ok=True)
            with atomic_path(out) as temporary:
                _write(video, temporary, progress)
        except AV_ERRORS as error:
            if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
                raise CostlError(f"{out}: cannot be written ({error.strerror}). {next_step(error)}") from error
            raise VideoError(f"{video.name}: cannot be converted ({error}). Convert it: ffmpeg -i IN OUT.mp4.") from error
        remove_least_used(store, max_bytes, keep=out)
    mark_used(out)
    return out


def _encoder() -> str:
    for name in _ENCODERS:
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise UsageError(f"PyAV {av.__version__} has none of the encoders {', '.join(_ENCODERS)}. Convert the video by ffmpeg.")


def _write(path: Path, out: Path, progress: ProgressCallback) -> None:
    encoder = _encoder()
    suffix, options = _ENCODERS[encoder]
    timeline = read_packets(path).timeline
    starts_s = np.unique(timeline.starts_s[timeline.first : timeline.last + 1])  # some AVI files repeat a time
    rate = len(starts_s) / max(timeline.duration_s - timeline.picture_start_s, 1e-3)
    options = {**options, "g": str(max(1, round(rate * _KEY_FRAME_EVERY_S)))}
    source, _ = open_container(path)
    with (
        source,
        open_video(path, FrameOptions("pyav")) as video,
        av.open(str(out), "w", format="webm" if suffix == ".webm" else "mp4") as target,
    ):
        target.metadata["comment"] = MADE_BY
        stream = target.add_stream(encoder, rate=Fraction(rate).limit_denominator(1000), options=options)
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.height = min(HEIGHT, video.height) // 2 * 2 or 2
        stream.width = round(video.width * stream.height / video.height / 2) * 2 or 2
        stream.pix_fmt = "yuv420p"
        sound = _Sound(source, target, _SOUND[suffix])
        done = 0
        for frames in video.sample(starts_s, chunk=_FRAMES_AT_ONCE):
            for pixels, start_s in zip(frames.pixels, frames.times_s.tolist(), strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame = frame.reformat(stream.width, stream.height, "yuv420p")
                frame.pts = round(start_s * _TICKS)
                frame.time_base = Fraction(1, _TICKS)
                target.mux(stream.encode(frame))
                sound.write_until(start_s)
            done += len(frames.pixels)
            progress(Progress("proxy", done, len(starts_s), path.name))
        target.mux(stream.encode(None))
        sound.write_until(timeline.duration_s)
        sound.finish()


class _Sound:
    """The sound of a video, encoded again; nothing if it has none. It is written in step with the pictures."""

    def __init__(self, source: Any, target: Any, codec: str):
        self._target = target
        self._stream: Any = None
        self._frames: Iterator[Any] = iter(())
        self._next: Any = None
        audio = source.streams.best("audio")
        if audio is None or audio.codec_context is None:
            return
        layout = "mono" if audio.codec_context.layout.nb_channels == 1 else "stereo"
        self._stream = target.add_stream(codec, rate=_SOUND_RATE, layout=layout)
        self._frames = read_sound(source, audio, 0.0, float("inf"))
        self._next = next(self._frames, None)

    def write_until(self, second: float) -> None:
        """Writes the frames that begin before `second`."""
        while self._next is not None and self._next.time < second:
            self._target.mux(self._stream.encode(self._next))
            self._next = next(self._frames, None)

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        if self._stream is not None:
            self._target.mux(self._stream.encode(None))

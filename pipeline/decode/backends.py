"""Which decoder opens a video, which decoders work on this machine, and which of them is the fastest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from costl.pipeline.decode.video import OpenVideo, refuse_unsafe
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import DECODERS, FrameOptions, ResizeTarget

# By measured CPU seconds per sampled frame (docs/decoding.md). "auto" never chooses NVDEC: it adds to the cores rather
# than replacing them, and its frames differ from those of the software decoders.
FASTEST_FIRST = ("pyav", "torchcodec", "decord")
_INSTALL = {
    "decord": "Install it: pip install decord (x86-64) or decord2.",
    "pyav": "Install it: pip install 'av>=17'.",
    "torchcodec": "Install it: pip install 'costl[torchcodec]', and FFmpeg's libraries (Debian: apt install ffmpeg).",
    "torchcodec:cuda": "It needs an NVIDIA GPU and a build of torchcodec with NVDEC (see its installation page).",
}


@contextmanager
def open_video(path: Path, options: FrameOptions | None = None) -> Iterator[OpenVideo]:
    """Open a video with the decoder that `options` names, and close it in the end.

    Raises VideoError if it is not a complete video.
    """
    options = options or FrameOptions()
    refuse_unsafe(path)
    video = opener(options.decoder)(path, options.resize_to)
    try:
        yield video
    finally:
        video.close()


def opener(name: str) -> Callable[[Path, ResizeTarget | None], OpenVideo]:
    """The function that opens a video with this decoder. Imports the libraries of this decoder only."""
    if name == "decord":
        from costl.pipeline.decode.decord_backend import DecordVideo

        return DecordVideo
    if name == "pyav":
        from costl.pipeline.decode.pyav_backend import PyavVideo

        return PyavVideo
    from costl.pipeline.decode.torchcodec_backend import TorchcodecVideo

    return partial(TorchcodecVideo, device=name.partition(":")[2] or "cpu")


def resolve(name: str) -> str:
    """The decoder of this name; for "auto" the fastest that works on this machine. Each is tried on a small video.

    Raises UsageError with the next step if it does not work.
    """
    if name not in (*DECODERS, "auto"):
        raise UsageError(f"decoder is {name!r}, expected one of {', '.join((*DECODERS, 'auto'))}.")
    if name == "decord":  # the default is not tried here: the decode processes report what is wrong with it
        return name
    failures = {}
    with tempfile.TemporaryDirectory() as folder:
        video = _write_test_video(Path(folder) / "video.mp4")
        for candidate in FASTEST_FIRST if name == "auto" else (name,):
            failures[candidate] = _failure(candidate, video)
            if not failures[candidate]:
                return candidate
    raise UsageError(
        " ".join(
            f"decoder {candidate} does not work here: {failure} {_INSTALL[candidate]}"
            for candidate, failure in failures.items()
        )
    )


def _failure(name: str, path: Path) -> str:
    """Why this decoder cannot decode the test video; empty if it can."""
    try:
        with open_video(path, FrameOptions(name)) as video:
            (frames,) = video.sample([0.0, video.duration_s])
        return "" if frames.pixels.shape[0] == 2 else "it returns too few frames."
    except (ImportError, OSError, RuntimeError, CostlError) as error:
        message = str(error.__cause__ or error)  # the test video is good, so the library's own message is the reason
        return next((line.strip().rstrip(".:") for line in message.splitlines() if line.strip()), "no reason") + "."


def _write_test_video(path: Path) -> Path:
    """Five grey frames."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in range(0, 250, 50):
            pixels = np.full((64, 64, 3), grey, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path

"""Opens a video with the decoder of a name, and checks that this decoder works on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from costl.pipeline.decode.video import OpenVideo, refuse_unsafe
from costl.pipeline.errors import CostlError, UsageError, VideoError
from costl.pipeline.options import FrameOptions, ResizeTarget
from costl.pipeline.videos import read_failure

# By measured CPU seconds per sampled frame (docs/decoding.md). It is not NVDEC, which adds to the cores rather than replacing
# them, and whose frames differ from those of the software decoders.
FASTEST = "pyav"
_INSTALL = {
    "torchcodec": "Install it: pip install 'costl[torchcodec]', and FFmpeg's libraries (Debian: apt install ffmpeg).",
    "torchcodec:cuda": "It needs an NVIDIA GPU and a build of torchcodec with NVDEC (see its installation page).",
}


def open_video(path: Path, options: FrameOptions | None = None) -> closing[OpenVideo]:
    """Open a video with the decoder that `options` name, as a context manager that closes it in the end.

    Where that decoder cannot read it, PyAV does, if its frames are the same. Raises VideoError if it is not a complete video.
    """
    options = options or FrameOptions()
    refuse_unsafe(path)
    try:
        return closing(_open(path, options))
    except OSError as error:  # it has gone or changed since
        refuse_unsafe(path)
        raise read_failure(path, error) from error


def _open(path: Path, options: FrameOptions) -> OpenVideo:
    by_pyav = replace(options, decoder="pyav")
    try:
        return opener(options.decoder)(path, options.resize_to)
    except VideoError:
        if options == by_pyav or options.fingerprint() != by_pyav.fingerprint():
            raise
        return opener("pyav")(path, options.resize_to)


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
    """The decoder of this name; for "auto" the fastest. One that is not installed with CoSTL is tried on a small video.

    Raises UsageError with the next step if it does not work here.
    """
    if name in _INSTALL:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            _write_test_video(path)
            try:
                with closing(opener(name)(path, None)) as video:
                    list(video.sample([0.0]))
            except (ImportError, OSError, RuntimeError, CostlError) as error:
                message = str(error.__cause__ or error)  # the video is good, so the library's own message is the reason
                reason = message.strip().partition("\n")[0].rstrip(".:")
                raise UsageError(f"decoder {name} does not work here: {reason}. {_INSTALL[name]}") from error
    return FASTEST if name == "auto" else name


def _write_test_video(path: Path) -> None:
    """Five frames of any content."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(640, 480, "yuv420p")))
        container.mux(stream.encode(None))

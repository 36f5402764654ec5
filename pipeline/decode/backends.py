"""Which decoder opens a video, which of them work here, and which is the fastest of those."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from costl.pipeline.decode.video import OpenVideo
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import DECODERS, How, Target

# By CPU seconds a sampled frame, as measured (docs/decoding.md). NVDEC adds to the cores rather than replacing them, and
# its frames are another family: it is never chosen without being asked for.
FASTEST_FIRST = ("pyav", "torchcodec", "decord")
_USUAL = How()
_INSTALL = {
    "decord": "Install it: pip install decord (x86-64) or decord2.",
    "pyav": "Install it: pip install 'av>=17'.",
    "torchcodec": "Install it: pip install 'costl[torchcodec]', and FFmpeg's libraries (Debian: apt install ffmpeg).",
    "torchcodec:cuda": "It needs an NVIDIA GPU and a build of torchcodec with NVDEC (see its installation page).",
}


def open_video(path: Path, how: How = _USUAL) -> OpenVideo:
    """The video, opened by the decoder that `how` names. Raises VideoError for what is not a whole video."""
    return opener(how.decoder)(path, how.resize_to)


def opener(name: str) -> Callable[[Path, Target | None], OpenVideo]:
    """What opens a video by this decoder; the libraries of the others stay out of the process."""
    if name == "decord":
        from costl.pipeline.decode.decord_backend import DecordVideo

        return DecordVideo
    if name == "pyav":
        from costl.pipeline.decode.pyav_backend import AvVideo

        return AvVideo
    from costl.pipeline.decode.torchcodec_backend import TorchcodecVideo

    device = name.partition(":")[2] or "cpu"
    return lambda path, target: TorchcodecVideo(path, target, device=device)


def resolve(name: str) -> str:
    """The decoder of this name, or for "auto" the fastest that works here: each is tried on a small clip made for it.

    Raises UsageError with the next step where it does not work.
    """
    if name not in (*DECODERS, "auto"):
        raise UsageError(f"decoder is {name!r}, expected one of {', '.join((*DECODERS, 'auto'))}.")
    if name == "decord":  # the default is tried by the decode processes themselves
        return name
    reasons = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = _clip(Path(folder) / "clip.mp4")
        for one in FASTEST_FIRST if name == "auto" else (name,):
            reasons[one] = _why_not(one, clip)
            if not reasons[one]:
                return one
    raise UsageError(
        " ".join(f"decoder {one} does not work here: {why} {_INSTALL[one]}" for one, why in reasons.items())
    )


def _why_not(name: str, clip: Path) -> str:
    try:
        with opener(name)(clip, None) as video:
            (frames,) = video.sample([0.0, video.duration_s])
        return "" if frames.pixels.shape[0] == 2 else "it gives too few frames."
    except (ImportError, OSError, RuntimeError, CostlError) as error:
        told = str(error.__cause__ or error)  # the clip is ours, so what the library said counts
        return next((line.strip().rstrip(".:") for line in told.splitlines() if line.strip()), "no reason") + "."


def _clip(path: Path) -> Path:
    """Five grey frames."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in range(0, 250, 50):
            picture = np.full((64, 64, 3), grey, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path

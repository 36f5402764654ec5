"""In which kinds of video a decoder may seek: those in which it has been compared with decoding every frame."""

from __future__ import annotations

from typing import Any

# FFmpeg's name of the container (the first one) to its names of codecs. `pytest -m long tests/pipeline/decode/test_codecs.py`
# compares them all. decord asks the container for a key frame and does not check where it arrives, which only the index of
# an MP4 makes exact. PyAV looks at the packet that it finds, but needs true marks of key frames and a picture per packet.
_EXACT = {
    "decord": {"mov": frozenset(["h264", "hevc", "vp9"])},
    "pyav": {
        "mov": frozenset(["h264", "hevc", "vp9", "av1", "mjpeg", "prores"]),
        "matroska": frozenset(["h264", "hevc", "vp8", "vp9", "av1", "mjpeg"]),
        "flv": frozenset(["h264"]),
    },
}


def seeks_exactly(library: str, container: Any, stream: Any) -> bool:
    """Whether a seek of this library ("decord" or "pyav") is exact in an open container with this video stream."""
    return stream.codec.canonical_name in _EXACT[library].get(container.format.name.partition(",")[0], ())

"""The options of an extraction: how frames are made, how their tokens are stored, and how the work is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from costl.pipeline.errors import UsageError

# The encoder of own videos; docs/encoders.md has the evidence. Benchmarks keep the weights that papers use.
MODEL, WEIGHTS = "ViT-B-32", "laion2b_s34b_b79k"
DECODERS = ("decord", "pyav", "torchcodec", "torchcodec:cuda")
CHOICES = {
    "decoder": (*DECODERS, "auto"),
    "sampling": ("centre", "cheapest"),
    "resize": ("device", "decoder"),
    "dtype": ("float16", "int8"),
    "tokens": ("all", "cls"),
}
FAILURES_IN_A_ROW = 20  # after so many of these statuses the machine is to blame, not the videos
MACHINE_FAILURES = frozenset(["crashed", "timeout", "error"])
# Software decoders give the same frames bit for bit, so a cache may mix them. A GPU's own decoder is another family.
DECODER_FAMILIES = {"decord": "ffmpeg", "pyav": "ffmpeg", "torchcodec": "ffmpeg", "torchcodec:cuda": "nvdec"}


def check_choices(**values: Any) -> None:
    """Raises UsageError for a value that is not among the `CHOICES` of its name."""
    for name, value in values.items():
        if value not in CHOICES[name]:
            raise UsageError(f"{name} is {value!r}, expected {' or '.join(CHOICES[name])}.")


@dataclass(frozen=True)
class FrameOptions:
    """How the frames of a video are made.

    `decoder`: one of `DECODERS`. `sampling`: "centre" takes the frame on screen at a clip's centre, "cheapest" the frame
    of the clip that costs least to decode. `resize_to`: the size the decoder scales frames for, None to keep their size.
    """

    decoder: str = "decord"
    sampling: str = "centre"
    resize_to: ResizeTarget | None = None

    def fingerprint(self) -> dict[str, str]:
        """The fields that decide a feature. Each decoder scales in its own way and is then its own family."""
        family = DECODER_FAMILIES[self.decoder] if self.resize_to is None else self.decoder
        return {
            "decoder": family,
            "resize": "device" if self.resize_to is None else "decoder",
            "sampling": self.sampling,
        }

    @classmethod
    def from_fingerprint(cls, fingerprint: Mapping[str, Any], target: ResizeTarget) -> FrameOptions:
        """Options that give the frames of this fingerprint; `target` is the input of its network.

        An old fingerprint without such fields is of frames at the centre, in their own size.
        """
        family = str(fingerprint.get("decoder", "ffmpeg"))
        decoder = next((name for name in DECODERS if DECODER_FAMILIES[name] == family), family)
        resize_to = target if fingerprint.get("resize") == "decoder" else None
        return cls(decoder, str(fingerprint.get("sampling", "centre")), resize_to)


@dataclass(frozen=True)
class ResizeTarget:
    """The input of a network: `size` (height, width), and how open_clip fits a frame to it (`mode`)."""

    mode: str
    size: tuple[int, int]

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of a frame of this size after open_clip's resize, before its crop or padding."""
        target_height, target_width = self.size
        if self.mode == "squash":
            return self.size
        if self.mode == "shortest" and target_height == target_width:
            # torchvision cuts the long side down to a whole pixel ...
            short, long = sorted((height, width))
            long = int(target_height * long / short)
            return (target_height, long) if height <= width else (long, target_height)
        # ... and timm's rule, which open_clip uses for everything else, rounds both sides.
        ratios = height / target_height, width / target_width
        ratio = max(ratios) if self.mode == "longest" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) a decoder scales a frame of this size to; the frame's own size unless that makes it smaller."""
        scaled = self.resized_size(height, width)
        return scaled if math.prod(scaled) < height * width else (height, width)


@dataclass(frozen=True)
class TokenFormat:
    """How the tokens of a frame are stored.

    `dtype`: float16 as CLIP returns them, or int8 with one scale a token (see `cache.int8`). `tokens`: all of a frame, or
    cls, the frame token without its patches. `layers`: of how many of CLIP's last blocks; above 1 only in caches that
    version 0.1 wrote. Raises UsageError for other values.
    """

    dtype: str = "float16"
    layers: int = 1
    tokens: str = "all"

    def __post_init__(self) -> None:
        check_choices(dtype=self.dtype, tokens=self.tokens)
        if not isinstance(self.layers, int) or isinstance(self.layers, bool) or self.layers < 1:
            raise UsageError(f"layers is {self.layers!r}, expected how many of CLIP's last blocks are stored, at least 1.")

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> TokenFormat:
        """The format recorded in a fingerprint or an index. A missing field has the value it had before it was an option."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @property
    def has_patches(self) -> bool:
        """Whether patches are stored next to the frame token."""
        return self.tokens == "all"


@dataclass(frozen=True)
class RunOptions:
    """How the work is run. None of this decides a feature.

    `workers`: decode processes (default: one per core). `batch`: frames encoded at once (default: what suits the device).
    `time_limit_s`: seconds without progress after which a video fails (see `decode.pool.decode_videos`). Raises UsageError
    for counts below one.
    """

    workers: int | None = None
    batch: int | None = None
    time_limit_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            count = getattr(self, name)
            if count is not None and not (isinstance(count, int) and count >= 1):
                raise UsageError(f"{name} is {count!r}, expected a whole number from 1 on.")

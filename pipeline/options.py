"""How a video is turned into pictures: which decoder, which frame of a clip, and at what size; what of it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from costl.pipeline.errors import UsageError

DECODERS = ("decord", "pyav", "torchcodec", "torchcodec:cuda")
SAMPLINGS = ("centre", "cheapest")
RESIZES = ("device", "decoder")
# What software decoders give is bit for bit the same, so that a cache may mix them; a GPU's own decoder is another.
FAMILIES = {"decord": "ffmpeg", "pyav": "ffmpeg", "torchcodec": "ffmpeg", "torchcodec:cuda": "nvdec"}
FIELDS = ("decoder", "resize", "sampling")


@dataclass(frozen=True)
class Target:
    """The picture a network wants: `size` (height, width), and which side of a frame is made to fit it (`mode`)."""

    mode: str
    size: tuple[int, int]

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a frame of this size is scaled to; its own where that would not make it smaller."""
        to = resized((height, width), self.mode, self.size)
        return to if to[0] * to[1] < height * width else (height, width)


@dataclass(frozen=True)
class How:
    """How the frames of a video are made. `decoder`: one of `DECODERS`. `sampling`: "centre", the frame on screen at a
    clip's centre, or "cheapest", the one of the clip that costs least to decode. `resize_to`: None for frames of their
    own size, otherwise what the decoder scales them for.
    """

    decoder: str = "decord"
    sampling: str = "centre"
    resize_to: Target | None = None

    def fingerprint(self) -> dict[str, str]:
        """What of this decides a feature (`FIELDS`). Every decoder scales in its own way, and is then its own family."""
        family = FAMILIES[self.decoder] if self.resize_to is None else self.decoder
        return {
            "decoder": family,
            "resize": "device" if self.resize_to is None else "decoder",
            "sampling": self.sampling,
        }


def decoder_of(family: str) -> str:
    """A decoder that makes the frames of this family: the first of those that do, or the one of that name."""
    return next((name for name in DECODERS if FAMILIES[name] == family), family)


def resized(found: tuple[int, int], mode: str, to: tuple[int, int]) -> tuple[int, int]:
    """(height, width) after open_clip's resize of a picture of size `found` for a network of size `to`, before its crop."""
    (height, width), (to_height, to_width) = found, to
    if mode == "squash":
        return to_height, to_width
    if mode == "shortest" and to_height == to_width:
        # torchvision cuts the long side down to a whole pixel ...
        short, long = sorted((height, width))
        long = int(to_height * long / short)
        return (to_height, long) if height <= width else (long, to_height)
    # ... and timm's rule, used for all else, rounds both sides.
    ratios = height / to_height, width / to_width
    ratio = max(ratios) if mode == "longest" else min(ratios)
    return round(height / ratio), round(width / ratio)


FAILURES_IN_A_ROW = 20  # from so many on it is the machine, not the videos


@dataclass(frozen=True)
class Effort:
    """How the work is done, which decides no feature: decode processes (`workers`, default: one a core), frames encoded at
    once (`batch`, default: what suits the device), `compiled` after a minute of compiling, and how long a video may take
    to get on (`time_limit_s`, see `workers.decode_videos`). Raises UsageError for counts below one.
    """

    workers: int | None = None
    batch: int | None = None
    compiled: bool = False
    time_limit_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}, expected at least 1.")


DTYPES = ("float16", "int8")
TOKENS = ("all", "cls")


@dataclass(frozen=True)
class Form:
    """`dtype` float16 as CLIP gives them, or int8 with scales (see `quantise`); `layers` how many of the last blocks;
    `tokens` all of a frame, or cls: the frame's token without its patches.

    Raises UsageError for a value that cannot be meant.
    """

    dtype: str = "float16"
    layers: int = 1
    tokens: str = "all"

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("tokens", TOKENS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}.")
        if not isinstance(self.layers, int) or isinstance(self.layers, bool) or self.layers < 1:
            raise UsageError(f"layers is {self.layers!r}, expected how many of CLIP's last blocks to keep, at least 1.")

    @property
    def patches(self) -> bool:
        """Whether patches are kept beside the frame's token."""
        return self.tokens == "all"

    def token_bytes(self, channels: int) -> int:
        """What one token of one layer takes, its scale included."""
        return channels + 4 if self.dtype == "int8" else 2 * channels


def form_in(values: Mapping[str, Any]) -> Form:
    """The form that a fingerprint or an index tells; what it does not speak of is as it was before there was a choice."""
    return Form(**{field.name: values[field.name] for field in fields(Form) if field.name in values})

"""Frames to network input exactly as PIL and torchvision would make it, on any device and many at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from costl.pipeline.errors import UsageError
from costl.pipeline.options import Target, resized


@dataclass(frozen=True)
class Preprocess:
    """How open_clip prepares an image: `size` (height, width), `mean` and `std` per channel in [0, 1], and the resize.

    `resize_mode`: `shortest` (short side to size, then crop the centre), `longest` (long side to size, then pad) or
    `squash` (both sides to size). Raises UsageError for anything else.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.interpolation not in ("bicubic", "bilinear", "random"):
            raise UsageError(f"interpolation {self.interpolation!r}: expected bicubic or bilinear.")
        if self.resize_mode not in ("shortest", "longest", "squash"):
            raise UsageError(f"resize mode {self.resize_mode!r}: expected shortest, longest or squash.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Preprocess:
        """From open_clip's `preprocess_cfg`, where a number may stand for a pair or a triple."""
        return cls(
            size=_repeat(settings["size"], 2, int),
            mean=_repeat(settings["mean"], 3, float),
            std=_repeat(settings["std"], 3, float),
            interpolation=settings["interpolation"],
            resize_mode=settings["resize_mode"],
            fill_color=settings.get("fill_color", 0),
        )

    @property
    def target(self) -> Target:
        """What a decoder has to know of this to do the resize itself."""
        return Target(self.resize_mode, self.size)


def prepare(pixels: UInt8[Tensor, "n h w 3"], preprocess: Preprocess) -> Float[Tensor, "n 3 y x"]:
    """Resize, crop or pad, normalise: open_clip's PIL transform, but for one grey level here and there."""
    x = pixels.permute(0, 3, 1, 2).to(torch.float32)
    x = _resize(x, _resized(x.shape[-2:], preprocess), _kernel(preprocess))
    x = _centre(x, preprocess.size, fill=preprocess.fill_color if preprocess.resize_mode == "longest" else 0)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return (x / 255 - mean) / std


def part_seen(height: int, width: int, preprocess: Preprocess) -> tuple[float, float, float, float]:
    """Which part of a picture of this size the network sees: (left, top, width, height) as shares of the picture.

    Cropped sides lie inside it, padded ones reach beyond it.
    """
    top, tall, left, wide = (
        share
        for found, to in zip(_resized(torch.Size((height, width)), preprocess), preprocess.size, strict=True)
        for share in ((_first(found, to) / found), to / found)
    )
    return left, top, wide, tall


def _first(found: int, to: int) -> int:
    """Where, along one side of a resized picture, what `_centre` keeps begins; below zero where it pads."""
    missing = max(0, to - found)
    return round((found + missing - to) / 2) - missing // 2


def _repeat(value: Any, count: int, kind: type) -> Any:
    values = value if isinstance(value, (tuple, list)) else (value,) * count
    return tuple(kind(one) for one in values)


def _kernel(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    # open_clip forgets the interpolation of a tower that crops to a rectangle, and so must its equal.
    forgotten = preprocess.resize_mode == "shortest" and height != width
    return "bilinear" if preprocess.interpolation == "bilinear" and not forgotten else "bicubic"


def _resized(found: torch.Size, preprocess: Preprocess) -> tuple[int, int]:
    height, width = found
    return resized((height, width), preprocess.resize_mode, preprocess.size)


def _resize(x: Float[Tensor, "n 3 h w"], size: tuple[int, int], kernel: str) -> Float[Tensor, "n 3 y x"]:
    # As PIL does it: the width first, rounded to grey levels, then the height, rounded again. One pass, or no
    # rounding in between, differs in every tenth pixel. (Since Pillow 13 it takes the height first where that shrinks
    # much more than the width, which only squashing a tall picture does; features must not depend on its version.)
    for target in ((x.shape[-2], size[1]), size):
        if tuple(x.shape[-2:]) != target:
            x = F.interpolate(x, size=target, mode=kernel, antialias=True, align_corners=False)
            x = x.clamp_(0, 255).add_(0.5).floor_()
    return x


def _centre(x: Float[Tensor, "n 3 h w"], size: tuple[int, int], *, fill: int) -> Float[Tensor, "n 3 y x"]:
    missing_y, missing_x = (max(0, to - found) for to, found in zip(size, x.shape[-2:], strict=True))
    if missing_y or missing_x:
        sides = (missing_x // 2, (missing_x + 1) // 2, missing_y // 2, (missing_y + 1) // 2)
        x = F.pad(x, sides, value=float(fill))
    top, left = (round((found - to) / 2) for found, to in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]

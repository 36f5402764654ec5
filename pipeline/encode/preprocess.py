"""Preprocessing of frames as PIL and torchvision do it for open_clip, in batches and on any device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from costl.pipeline.errors import UsageError
from costl.pipeline.options import ResizeTarget


@dataclass(frozen=True)
class Preprocess:
    """open_clip's preprocessing of an image: `size` (height, width), `mean` and `std` per channel in [0, 1], and the resize.

    `resize_mode`: `shortest` (short side to size, then crop the centre), `longest` (long side to size, then pad) or
    `squash` (both sides to size). Raises UsageError for other modes and interpolations.
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
        """From open_clip's `preprocess_cfg`, in which one number may stand for a pair or a triple."""
        return cls(
            size=_repeat(settings["size"], 2, int),
            mean=_repeat(settings["mean"], 3, float),
            std=_repeat(settings["std"], 3, float),
            interpolation=settings["interpolation"],
            resize_mode=settings["resize_mode"],
            fill_color=settings.get("fill_color", 0),
        )

    @property
    def resize_target(self) -> ResizeTarget:
        """What decides the size of a frame after the resize."""
        return ResizeTarget(self.resize_mode, self.size)


def prepare(pixels: UInt8[Tensor, "n h w 3"], preprocess: Preprocess) -> Float[Tensor, "n 3 y x"]:
    """Resizes, crops or pads, and normalises, as open_clip's PIL transform does; single values may differ by one grey level."""
    from torchvision.transforms.functional import center_crop  # slow to import, and `visible_region` does not need it

    x = pixels.permute(0, 3, 1, 2).to(torch.float32)
    height, width = x.shape[-2:]
    x = _resize(x, preprocess.resize_target.resized_size(height, width), _kernel(preprocess))
    padding = preprocess.fill_color if preprocess.resize_mode == "longest" else 0
    x = center_crop(x - padding, list(preprocess.size)) + padding  # which pads with zeros
    mean, std = (_per_channel(values, x.device) for values in (preprocess.mean, preprocess.std))
    return (x / 255 - mean) / std


def _per_channel(values: tuple[float, float, float], device: torch.device) -> Float[Tensor, "3 1 1"]:
    # `x.new_tensor` would make the host wait until a GPU has computed all batches that were started.
    constants = torch.tensor(values, dtype=torch.float32)
    return constants.to(device, non_blocking=device.type == "cuda")[:, None, None]


def _kernel(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    # open_clip ignores the interpolation of a tower that crops to a rectangle, so we must as well.
    ignored = preprocess.resize_mode == "shortest" and height != width
    return "bilinear" if preprocess.interpolation == "bilinear" and not ignored else "bicubic"


def _resize(x: Float[Tensor, "n 3 h w"], size: tuple[int, int], kernel: str) -> Float[Tensor, "n 3 y x"]:
    # As PIL does it: first the width, rounded to grey levels, then the height, rounded again. One pass, or no rounding in
    # between, would change a tenth of the pixels. (Since Pillow 13 the height comes first if it shrinks much more than the
    # width, which happens only if a tall picture is squashed. Features must not depend on Pillow's version.)
    for target in ((x.shape[-2], size[1]), size):
        if tuple(x.shape[-2:]) != target:
            x = F.interpolate(x, size=target, mode=kernel, antialias=True, align_corners=False)
            x = x.clamp_(0, 255).add_(0.5).floor_()
    return x


def visible_region(height: int, width: int, preprocess: Preprocess) -> tuple[float, float, float, float]:
    """The region of a picture of this size that the network sees: (left, top, width, height) as shares of the picture.

    The region lies inside the picture where the picture is cropped, and reaches beyond it where it is padded.
    """
    resized_height, resized_width = preprocess.resize_target.resized_size(height, width)
    input_height, input_width = preprocess.size
    top = _crop_start(resized_height, input_height) / resized_height
    left = _crop_start(resized_width, input_width) / resized_width
    return left, top, input_width / resized_width, input_height / resized_height


def _crop_start(side: int, target: int) -> int:
    """Where `center_crop` begins along one side of a resized picture; below zero where it pads."""
    missing = max(0, target - side)
    return round((side + missing - target) / 2) - missing // 2


def _repeat(value: Any, count: int, kind: type) -> Any:
    values = value if isinstance(value, (tuple, list)) else (value,) * count
    return tuple(kind(element) for element in values)

"""Reads a picture file of a person as the pixels that an encoder gets, whatever its format, colours and rotation are."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import as_path

MAX_PIXELS = 100_000_000
MAX_ASPECT = 50  # CLIP's preprocessing enlarges the short side, and the long one with it
# What Pillow raises for damaged files, in addition to OSError and ValueError.
_DAMAGED = (SyntaxError, EOFError, struct.error, zlib.error, LookupError, TypeError, OverflowError, AttributeError)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
_NEXT_STEP = "Name a picture such as frame.jpg or frame.png."


def read_image(path: Path | str) -> UInt8[np.ndarray, "h w 3"]:
    """The first picture of a file in RGB, turned as its EXIF data say, transparent parts on white.

    Of 16 bits the upper eight are used. Colour profiles are ignored, as those of videos are. Raises UsageError for a file
    that is missing, damaged, too large, too narrow, or not a picture.
    """
    path = as_path("image", path)
    if not os.path.isfile(path):
        raise UsageError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}. {_NEXT_STEP}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about large and odd files
            with Image.open(path) as image:
                _refuse_size(path, *image.size)
                return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path}: has more than {MAX_PIXELS:,} pixels. Make it smaller.") from error
    except UnidentifiedImageError as error:
        raise UsageError(f"{path}: {_kind(path)}. {_NEXT_STEP}") from error
    except (OSError, ValueError, *_DAMAGED) as error:
        raise UsageError(f"{path}: cannot be read as a picture ({error}). {_NEXT_STEP}") from error


def _refuse_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UsageError(f"{path}: has {width} x {height} pixels, expected at most {MAX_PIXELS:,}. Make it smaller.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UsageError(f"{path}: has {width} x {height} pixels, expected at most {MAX_ASPECT} times as long as wide. Crop it.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey in 16 bits, which Pillow would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65_535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its grey values are fractions of an unknown range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(12)
    if begin[4:8] == b"ftyp" and begin[8:12] in _HEIC_BRANDS:
        return "a HEIC picture, which Pillow cannot read. Convert it to JPEG first"
    return "not a picture, or in a format that Pillow cannot read"

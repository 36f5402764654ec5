"""Pictures in many formats are the same pixels, and files that are no pictures are refused in one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from costl.pipeline.errors import UsageError
from costl.pipeline.formats import image_file
from costl.pipeline.formats.image_file import read_image

HEIGHT, WIDTH = 48, 64
EXIF_ORIENTATION = 0x0112
# What a camera does to an upright picture so that each orientation turns it back.
STORED_AS: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: ImageOps.flip(image.rotate(90, expand=True)),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: ImageOps.flip(image.rotate(-90, expand=True)),
    8: lambda image: image.rotate(-90, expand=True),
}


def picture() -> Image.Image:
    """Smooth and without symmetry, so that lossy formats change it little and every turn changes it much."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def grey() -> Image.Image:
    return picture().convert("L")


def with_alpha(alpha: int) -> Image.Image:
    image = picture()
    image.putalpha(alpha)
    return image


def grey_16_bits() -> Image.Image:
    return Image.fromarray(np.asarray(grey()).astype(np.uint16) * 256 + 77)


def rgb_16_bits() -> bytes:
    """A PNG with 16 bits a channel, which Pillow does not write."""
    rows = (np.asarray(picture()).astype(np.uint16) * 256 + 77).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(image: Image.Image, output_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, output_format, **options)
    return file.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(STORED_AS[orientation](picture()), "PNG", exif=exif)


def palette() -> Image.Image:
    return picture().quantize(16)


RGB, GREY = np.asarray(picture()), np.asarray(grey().convert("RGB"))
BLACK = np.zeros_like(RGB)
ODD = {
    "frame.png": (encoded(picture(), "PNG"), RGB, 0),
    "no-suffix": (encoded(picture(), "PNG"), RGB, 0),
    "wrong-suffix.jpg": (encoded(picture(), "PNG"), RGB, 0),
    "frame.bmp": (encoded(picture(), "BMP"), RGB, 0),
    "frame.tiff": (encoded(picture(), "TIFF"), RGB, 0),
    "frame.jpg": (encoded(picture(), "JPEG", quality=95), RGB, 6),
    "cmyk.jpg": (encoded(picture().convert("CMYK"), "JPEG", quality=95), RGB, 6),
    "grey.jpg": (encoded(grey(), "JPEG", quality=95), GREY, 6),
    "lossless.webp": (encoded(picture(), "WEBP", lossless=True), RGB, 0),
    "lossy.webp": (encoded(picture(), "WEBP", quality=95), RGB, 24),
    "opaque.png": (encoded(with_alpha(255), "PNG"), RGB, 0),
    "transparent.png": (encoded(with_alpha(0), "PNG"), BLACK + 255, 0),
    "grey.png": (encoded(grey(), "PNG"), GREY, 0),
    "grey-alpha.png": (encoded(grey().convert("LA"), "PNG"), GREY, 0),
    "grey-16.png": (encoded(grey_16_bits(), "PNG"), GREY, 0),
    "grey-16.tiff": (encoded(grey_16_bits(), "TIFF"), GREY, 0),
    "rgb-16.png": (rgb_16_bits(), RGB, 0),
    "transparent-grey.png": (encoded(Image.new("LA", (WIDTH, HEIGHT)), "PNG"), BLACK + 255, 0),
    "palette.png": (encoded(palette(), "PNG"), np.asarray(palette().convert("RGB")), 0),
    "transparent-palette.png": (encoded(Image.new("P", (WIDTH, HEIGHT)), "PNG", transparency=0), BLACK + 255, 0),
    "one-bit.png": (encoded(Image.new("1", (WIDTH, HEIGHT), 1), "PNG"), BLACK + 255, 0),
    "moving.gif": (
        encoded(palette(), "GIF", save_all=True, append_images=[Image.new("P", (WIDTH, HEIGHT))]),
        np.asarray(palette().convert("RGB")),
        0,
    ),
    "moving.webp": (
        encoded(picture(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]),
        RGB,
        0,
    ),
    **{f"exif-{orientation}.png": (oriented(orientation), RGB, 0) for orientation in STORED_AS},
}


@pytest.mark.parametrize(("name", "content", "expected", "tolerance"), [(name, *row) for name, row in ODD.items()], ids=ODD)
def test_every_format_gives_the_pixels_of_the_picture(tmp_path, name, content, expected, tolerance):
    (tmp_path / name).write_bytes(content)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(with_alpha(128), "PNG"))
    assert np.abs(read_image(tmp_path / "half.png") - (RGB * (128 / 255) + 127)).max() <= 1


def bomb(width: int, height: int) -> bytes:
    """The beginning of a PNG of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (header, rows)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. Name a picture"),
        (b"", "not a picture, or in a format that Pillow cannot read"),
        (b"a text", "not a picture, or in a format that Pillow cannot read"),
        (encoded(picture(), "PNG")[:60], "cannot be read as a picture"),
        (encoded(picture(), "JPEG")[:-300], "cannot be read as a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100, "a HEIC picture, which Pillow cannot read. Convert it"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + b"\0" * 100, "not a picture"),
        (bomb(10_000, 10_001), "has 10000 x 10001 pixels, expected at most 100,000,000"),
        (bomb(60_000, 60_000), "has more than 100,000,000 pixels"),
        (encoded(Image.new("RGB", (51, 1)), "PNG"), "has 51 x 1 pixels, expected at most 50 times as long as wide"),
        (encoded(Image.new("F", (64, 64)), "TIFF"), "its grey values are fractions of an unknown range"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "frame.x").write_bytes(content)
    with pytest.raises(UsageError, match=r"^[^\n]+$") as caught:
        read_image(tmp_path / "frame.x")
    assert str(caught.value).startswith(f"{tmp_path / 'frame.x'}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "image is '', expected a path"),
        ("a\0b", "expected a path"),
        (3, "image is 3, expected a path"),
        (".", "not a file"),
        ("x" * 5000, "no such file"),
    ],
)
def test_what_is_no_file_is_refused(path, message):
    with pytest.raises(UsageError, match=message):
        read_image(path)


@pytest.mark.parametrize("position", range(0, 2000, 97))
def test_damaged_pictures_give_pixels_or_a_refusal(tmp_path, position):
    """Bytes of several formats are replaced, one after the other."""
    for output_format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        content = bytearray(encoded(picture(), output_format))
        content[position % len(content)] ^= 0xFF
        path = Path(tmp_path / output_format)
        path.write_bytes(content)
        try:
            assert read_image(path).ndim == 3
        except UsageError as error:
            assert str(path) in str(error)


def test_a_picture_of_the_largest_size_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "MAX_PIXELS", HEIGHT * WIDTH)
    (tmp_path / "frame.png").write_bytes(encoded(picture(), "PNG"))
    assert read_image(str(tmp_path / "frame.png")).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(image_file, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(UsageError, match="Make it smaller"):
        read_image(tmp_path / "frame.png")

"""The image tower of a library gives a picture file the vector of the same picture as a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.formats.image_file import read_image
from costl.pipeline.library.image import load_image_encoder
from costl.pipeline.preview.cut import frames_at


@pytest.fixture(scope="module")
def features(world) -> CacheReader:
    return CacheReader(world.cache)


@pytest.fixture(scope="module")
def encoder(features) -> CLIPEncoder:
    return load_image_encoder(features, device="cpu", report_progress=lambda _: None)


@pytest.fixture(scope="module")
def frame(world) -> Image.Image:
    """The frame that stands for the first clip of a video."""
    return Image.fromarray(frames_at(world.videos / "test_0000.mp4", [1.0], height=64)[0])


def save_turned(frame: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 5  # turned and mirrored
    ImageOps.flip(frame.rotate(90, expand=True)).save(path, exif=exif)


def save_with_alpha(frame: Image.Image, path: Path) -> None:
    image = frame.copy()
    image.putalpha(255)
    image.save(path)


SAVE = {
    "plain.png": lambda frame, path: frame.save(path),
    "alpha.png": save_with_alpha,
    "turned.png": save_turned,
    "lossless.webp": lambda frame, path: frame.save(path, lossless=True),
    "frame.tiff": lambda frame, path: frame.save(path),
    "frame.jpg": lambda frame, path: frame.save(path, quality=95),
    "cmyk.jpg": lambda frame, path: frame.convert("CMYK").save(path, quality=95),
    "moving.gif": lambda frame, path: frame.save(path, save_all=True, append_images=[Image.new("RGB", frame.size)]),
}
LOSSY = {"frame.jpg": 0.98, "cmyk.jpg": 0.98, "moving.gif": 0.9}


@pytest.mark.parametrize("name", SAVE)
def test_every_format_has_the_vector_of_the_frame(features, encoder, frame, tmp_path, name):
    SAVE[name](frame, tmp_path / name)
    expected = features.joint_vectors("test_0000")[0].astype(np.float32)
    (vector,) = encoder.encode(read_image(tmp_path / name)[None]).joint.astype(np.float32)
    assert vector @ expected >= LOSSY.get(name, 0.9995)


def test_features_of_an_unknown_clip_have_no_image_tower(features, monkeypatch):
    monkeypatch.setattr(features, "source", {})
    with pytest.raises(CacheError, match="does not name its CLIP, so nothing can be compared"):
        load_image_encoder(features, device="cpu", report_progress=lambda _: None)


def test_weights_that_are_gone_are_named(features, monkeypatch):
    monkeypatch.setattr(features, "source", features.source | {"weights": "gone.pt"})
    with pytest.raises(UsageError, match=r"gone\.pt: no such weights file"):
        load_image_encoder(features, device="cpu", report_progress=lambda _: None)

"""The image tower of every model of open_clip: its feature map becomes tokens, and its own feature the joint vector.

Towers are built small: one block a stage and a small width. Models that then have the same settings are tested once.
"""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from small_towers import make_timm_small, small_settings, write_weights

from costl.pipeline.encode.clip import load_encoder


def models_by_settings() -> dict[str, list[str]]:
    """The models of open_clip, those with the same small settings together."""
    groups: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        groups.setdefault(json.dumps(small_settings(name), sort_keys=True), []).append(name)
    return groups


MODELS = models_by_settings()


@pytest.fixture
def small_timm(monkeypatch):
    make_timm_small(monkeypatch)


def pictures(size: int) -> np.ndarray:
    """Two pictures that differ much: a dark one, and one of bright squares."""
    squares = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    squares[0] //= 8
    return squares.repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: MODELS[settings][0])
def test_joint_vectors_are_those_of_open_clip(tmp_path, small_timm, settings):
    folder = write_weights(tmp_path, json.loads(settings))
    encoder = load_encoder(weights=str(folder))
    pixels = pictures(max(encoder.image_size))
    tokens, joint = encoder.encode(pixels)
    rows, columns = encoder.patch_grid
    assert tokens.shape == (2, 1 + rows * columns, encoder.width) and min(rows, columns) > 1
    assert joint.shape == (2, encoder.joint.width)
    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.inference_mode():
        images = [transform(Image.fromarray(frame))[None] for frame in pixels]
        expected = torch.cat([network.eval().encode_image(image, normalize=True) for image in images])
    np.testing.assert_allclose(joint.astype(np.float32), expected, atol=2e-3)
    assert np.linalg.norm(joint[0].astype(np.float32) - joint[1]) > 0.01, "the frames must differ for this to mean anything"


def test_no_model_of_open_clip_is_left_out():
    assert sorted(name for names in MODELS.values() for name in names) == sorted(open_clip.list_models())
    assert len(open_clip.list_models()) >= 144


@pytest.mark.parametrize(("name", "has_class_token"), [("ViT-B-32", True), ("ViT-B-16-SigLIP", False), ("RN50", False)])
def test_without_a_class_token_the_frame_token_is_the_mean(tmp_path, small_timm, name, has_class_token):
    encoder = load_encoder(weights=str(write_weights(tmp_path, small_settings(name))))
    tokens = encoder.encode(pictures(max(encoder.image_size))).tokens.astype(np.float32)
    assert np.allclose(tokens[:, 0], tokens[:, 1:].mean(1), rtol=1e-2, atol=1e-2) != has_class_token

"""The image tower of every model of open_clip: its feature map becomes tokens, and its own feature the joint vector.

Towers are built small: one block a stage and a small width. Models that then have the same settings are tested once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.factory import _MODEL_CONFIGS
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from PIL import Image
from safetensors.torch import save_file
from timm.models.vitamin import VitCfg, VitConvCfg

from costl.pipeline.encode.clip import load_encoder
from costl.pipeline.encode.image_tower import ImageTower

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
SMALL_VIT = {"depth": 1, "embed_dim": 64, "num_heads": 4}
CONV_STEM = VitCfg((16, 32, 64), (1, 1, 1), 16, VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6), head_type="1d")
FAST_STAGES = {"layers": (1,) * 4, "embed_dims": (16, 32, 64, 128)}
# The start of timm's name, and what makes the model small. The longest match counts.
SMALL_TIMM: dict[str, dict[str, Any]] = {
    "convnext_": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "eva": SMALL_VIT,
    "fastvit_mci": FAST_STAGES,
    "fastvit_mci3": {"layers": (1,) * 5, "embed_dims": (16, 32, 64, 128, 256)},
    "fastvit_mci4": {"layers": (1,) * 5, "embed_dims": (16, 32, 64, 128, 256)},
    "swin_": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
    "vit_": SMALL_VIT,
    "vit_base_mci_224": {"depth": 1},  # its stem has a fixed width
    "vitamin_": SMALL_VIT | {"embed_cfg": CONV_STEM},
}


def small_settings(name: str) -> dict[str, Any]:
    """open_clip's settings of a model, scaled down. What is left out of them is width and depth only."""
    settings = copy.deepcopy(_MODEL_CONFIGS[name])
    vision = settings["vision_cfg"]
    if "timm_model_name" not in vision:
        is_resnet = isinstance(vision["layers"], list)
        vision |= {"layers": [1, 1, 1, 1], "width": 8} if is_resnet else {"layers": 1, "width": 64, "head_width": 16}
        vision |= {} if is_resnet else {"image_size": 3 * vision["patch_size"]}
        if vision.get("attentional_pool"):
            vision |= {"attn_pooler_heads": 2}
    # How the text tower is made has nothing to do with the image tower.
    small = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": settings.get("quick_gelu", False)}
    if "multimodal_cfg" in settings:  # CoCa
        small |= {"custom_text": True, "multimodal_cfg": TEXT}
        small["text_cfg"] = TEXT | {"embed_cls": True, "output_tokens": True}
    return small


def models_by_settings() -> dict[str, list[str]]:
    """The models of open_clip, those with the same small settings together."""
    groups: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        groups.setdefault(json.dumps(small_settings(name), sort_keys=True), []).append(name)
    return groups


MODELS = models_by_settings()


@pytest.fixture
def small_timm(monkeypatch):
    """timm makes its towers small."""
    create: Callable[..., Any] = timm.create_model

    def create_small(name: str, **options: Any) -> Any:
        family = max((start for start in SMALL_TIMM if name.startswith(start)), key=len)
        return create(name, **options, **SMALL_TIMM[family])

    monkeypatch.setattr(timm, "create_model", create_small)


def write_weights(folder: Path, settings: dict[str, Any]) -> Path:
    """A folder with random weights of these settings, as open_clip reads it."""
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for name, parameter in network.visual.named_parameters():
        if parameter.ndim == 1 and "norm" in name:  # norms start as the identity, which would hide a missing one
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
        elif name.endswith("gamma"):  # a layer scale starts so small that the class token sees no picture
            torch.nn.init.ones_(parameter)
        elif parameter.ndim == 4:  # after some convolutions all pictures would look alike
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


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


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_tower_in_its_full_size_has_a_feature_map(report_figure):
    """On the meta device, which computes shapes only."""
    grids = {}
    for name in open_clip.list_models():
        settings = _MODEL_CONFIGS[name]
        with torch.device("meta"):
            config = CLIPVisionCfg(**settings["vision_cfg"])
            visual = _build_vision_tower(settings["embed_dim"], config, settings.get("quick_gelu", False), None).eval()
            size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
            tower = ImageTower(visual, size, name)
            features = visual(torch.empty(1, 3, *size))
        features = features[0] if isinstance(features, tuple) else features
        assert tower.joint_width == features.shape[1] == settings["embed_dim"], name
        grids[name] = tower.patch_grid
    report_figure(f"{len(grids)} towers, grids from {min(grids.values())} to {max(grids.values())}")

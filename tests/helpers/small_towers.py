"""Small models of open_clip: every image tower with one block a stage and a small width, and random weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.factory import _MODEL_CONFIGS
from safetensors.torch import save_file
from timm.models.vitamin import VitCfg, VitConvCfg

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
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
    width = 64 if vision.get("timm_proj") == "none" else 16  # without a projection, that of the tower
    small = {"embed_dim": width, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": settings.get("quick_gelu", False)}
    if "multimodal_cfg" in settings:  # CoCa
        small |= {"custom_text": True, "multimodal_cfg": TEXT}
        small["text_cfg"] = TEXT | {"embed_cls": True, "output_tokens": True}
    return small


def make_timm_small(monkeypatch: Any) -> None:
    """Makes timm build its towers small, until the test ends."""
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

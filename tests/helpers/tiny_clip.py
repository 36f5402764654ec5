"""A very small CLIP with seeded random weights, written in the folder layout of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "shortest"}


def model_config(*, quick_gelu: bool = False, **vision: Any) -> dict[str, Any]:
    return {"embed_dim": 32, "quick_gelu": quick_gelu, "vision_cfg": VISION | vision, "text_cfg": dict(TEXT)}


def write_clip_weights(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Writes a folder that `load_encoder` accepts as weights; the same seed gives the same weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model_config(**config)
    text = json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    save_file(random_network(folder, seed).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def random_network(folder: Path, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        # Norms start as the identity, which would hide a missing norm; activations start near zero, which would hide a
        # wrong one.
        for name, parameter in network.named_parameters():
            if "ln_" in name:
                torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
            if "c_fc.weight" in name or "c_proj.weight" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return network

"""Reads the settings of a folder that `transformers` wrote, and the open_clip network that has the same sizes.

config.json                                     architecture: clip, siglip, siglip2 or chinese_clip
preprocessor_config.json                        how images are prepared; newer releases write processor_config.json
model.safetensors or pytorch_model.bin          weights, perhaps in several files, which NAME.index.json then lists
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.pipeline.errors import UsageError, first_few

CONFIG = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
MODEL_TYPES = ("clip", "siglip", "siglip2", "chinese_clip")
_BICUBIC, _BILINEAR = 3, 2  # the numbers that Pillow gives them
# transformers writes only what differs from these defaults of its own classes.
_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_ACT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_VISION = _TOWER | _CLIP_ACT | {"num_channels": 3, "image_size": 224, "patch_size": 32}
_SIGLIP_ACT = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_VISION = _TOWER | _SIGLIP_ACT | {"num_channels": 3, "patch_size": 16, "vision_use_head": True}
_SIGLIP_TEXT = _TOWER | _SIGLIP_ACT | {"vocab_size": 32000, "max_position_embeddings": 64}
DEFAULTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "clip": (
        _CLIP_VISION,
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
        | _CLIP_ACT
        | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    ),
    "siglip": (_SIGLIP_VISION | {"image_size": 224}, _SIGLIP_TEXT),
    "siglip2": (_SIGLIP_VISION | {"num_patches": 256}, _SIGLIP_TEXT),
    "chinese_clip": (
        _CLIP_VISION,
        _TOWER
        | {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0}
        | {"hidden_act": "gelu", "layer_norm_eps": 1e-12},
    ),
}
_CLIP_IMAGES = {
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": _BICUBIC,
}
_SIGLIP_IMAGES = {"do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": _CLIP_IMAGES,
    "siglip": _SIGLIP_IMAGES | {"size": {"height": 224, "width": 224}, "resample": _BICUBIC},
    "siglip2": _SIGLIP_IMAGES | {"resample": _BILINEAR},
    "chinese_clip": _CLIP_IMAGES,
}
_CHINESE_CONTEXT = 52  # words; the tower has room for more, but was trained with these
_ACTIVATIONS = {"quick_gelu": "quick", "gelu": "none", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}


@dataclass(frozen=True)
class TransformersConfig:
    """The network of a folder, in the words of open_clip.

    `network`: open_clip's model_cfg; `trunk`, for SigLIP, describes the image tower in its place, and `bert`, for Chinese CLIP,
    is the configuration of the text tower. `preprocess`: open_clip's preprocess_cfg. `files`: the weights.
    """

    network: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    files: tuple[Path, ...]


def read_config(folder: Path) -> TransformersConfig:
    """The network and the files of a folder. Raises UsageError for an incomplete folder, and for what open_clip lacks."""
    config = _read(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise UsageError(
            f"{folder / CONFIG}: the model type is {kind!r}, expected one of {', '.join(MODEL_TYPES)}. "
            "Choose another checkpoint."
        )
    files = weight_files(folder)
    vision, text = _section(config, "vision"), _section(config, "text")
    try:
        network = _network(kind, config, {**DEFAULTS[kind][0], **vision}, {**DEFAULTS[kind][1], **text})
        size = network["vision_cfg"]["image_size"]
        preprocess = _preprocess(kind, _read_images(folder), size)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from error
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise UsageError(f"{folder}: its settings cannot be read ({error!r}). Get {CONFIG} again.") from error
    return TransformersConfig(network, preprocess, files)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of the weights, safetensors first. Raises UsageError if there are none, or if one of several is missing."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return (folder / name,)
        if index.is_file():
            parts = _read(index).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise UsageError(f"{index}: lists no files. Get it again.")
            names = sorted({str(part) for part in parts.values()})
            missing = [part for part in names if Path(part).name != part or not (folder / part).is_file()]
            if missing:
                raise UsageError(f"{folder}: {len(missing)} of {len(names)} files of weights are missing: {first_few(missing)}.")
            return tuple(folder / part for part in names)
    raise UsageError(f"{folder}: {CONFIG} without weights. Put {' or '.join(WEIGHT_FILES)} next to it.")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({str(error)[:200]}). Get it again.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is not a JSON object. Get it again.")
    return content


def _section(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    # Old checkpoints have the settings twice, and transformers lets the second copy win.
    values = {**(config.get(f"{tower}_config") or {}), **(config.get(f"{tower}_config_dict") or {})}
    return {name: value for name, value in values.items() if value is not None}


def _network(kind: str, config: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    if vision["num_channels"] != 3:
        raise UsageError(f"its images have {vision['num_channels']} channels, expected 3.")
    if kind in ("siglip", "siglip2"):
        return _siglip(kind, vision, text)
    embed_dim = config.get("projection_dim") or 512
    network: dict[str, Any] = {
        "embed_dim": embed_dim,
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_block(vision),
        },
    }
    if kind == "chinese_clip":
        network["bert"] = {name: text[name] for name in DEFAULTS[kind][1]}
        return network | {"text_cfg": {"context_length": min(text["max_position_embeddings"], _CHINESE_CONTEXT)}}
    if (text["hidden_act"] == "quick_gelu") != network["quick_gelu"]:
        raise UsageError(f"its towers have different activations, {vision['hidden_act']} and {text['hidden_act']}.")
    return network | {"text_cfg": _text(text) | _end_of_text(text["eos_token_id"])}


def _siglip(kind: str, vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    if not vision["vision_use_head"]:
        raise UsageError("its image tower has no pooling head, so it has no image feature.")
    size = vision["image_size"] if kind == "siglip" else _square(vision["num_patches"]) * vision["patch_size"]
    if text.get("projection_size", text["hidden_size"]) != vision["hidden_size"]:
        raise UsageError(f"its text tower projects to {text.get('projection_size')}, its images have {vision['hidden_size']}.")
    trunk = {
        "img_size": size,
        "patch_size": vision["patch_size"],
        "embed_dim": vision["hidden_size"],
        "depth": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "mlp_ratio": _mlp_ratio(vision),
        "activation": _activation(vision),
        "eps": vision["layer_norm_eps"],
    }
    return {
        "embed_dim": vision["hidden_size"],
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "init_logit_bias": 0.0,
        "vision_cfg": {"image_size": size},
        "trunk": trunk,
        "text_cfg": _text(text)
        | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "tokenizer_kwargs": {"clean": "canonicalize"}},
    }


def _square(patches: int) -> int:
    side = math.isqrt(patches)
    if side * side != patches:
        raise UsageError(f"its grid of {patches} patches is not a square.")
    return side


def _text(text: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        **_block(text),
    }


def _block(tower: Mapping[str, Any]) -> dict[str, Any]:
    activation = _activation(tower)
    return {
        "mlp_ratio": _mlp_ratio(tower),
        "norm_kwargs": {"eps": tower["layer_norm_eps"]},
        "act_kwargs": {} if activation == "quick" else {"approximate": activation},
    }


def _mlp_ratio(tower: Mapping[str, Any]) -> float:
    return float((tower["intermediate_size"] + 0.5) / tower["hidden_size"])  # the towers round down


def _activation(tower: Mapping[str, Any]) -> str:
    if tower["hidden_act"] not in _ACTIVATIONS:
        raise UsageError(f"its activation is {tower['hidden_act']!r}, expected one of {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[tower["hidden_act"]]


def _end_of_text(token: Any) -> dict[str, Any]:
    # Before 2023 transformers wrote 2 and meant the largest id of a sentence, which it still does when it reads a 2.
    return {"pool_type": "argmax"} if token == 2 else {"pool_type": "eos", "eos_id": int(token)}


def _read_images(folder: Path) -> dict[str, Any]:
    """The settings of the image processor. Raises UsageError without them: a wrong mean would silently spoil every feature."""
    newer = folder / "processor_config.json"
    nested = _read(newer).get("image_processor") if newer.is_file() else None
    if isinstance(nested, dict):
        return nested
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        raise UsageError(
            f"no {file.name}, which says how images are prepared. Copy it from where the weights are from, or write it with "
            "the save_pretrained of their processor."
        )
    return _read(file)


def _preprocess(kind: str, found: Mapping[str, Any], size: int) -> dict[str, Any]:
    images = {**IMAGE_DEFAULTS[kind], **{name: value for name, value in found.items() if value is not None}}
    for step in ("do_resize", "do_rescale"):
        if not images.get(step, True):
            raise UsageError(f"its images are prepared with {step} false, which open_clip cannot do.")
    if abs(images.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UsageError(f"its rescale_factor is {images['rescale_factor']}, expected 1/255.")
    kernels = {_BICUBIC: "bicubic", _BILINEAR: "bilinear"}
    if images["resample"] not in kernels:
        raise UsageError(f"its images are resized with resample {images['resample']}, expected 2 (bilinear) or 3 (bicubic).")
    normalised = images.get("do_normalize", True)
    return {
        "size": (size, size),
        "mode": "RGB",
        "mean": tuple(images["image_mean"]) if normalised else (0.0,) * 3,
        "std": tuple(images["image_std"]) if normalised else (1.0,) * 3,
        "interpolation": kernels[images["resample"]],
        "resize_mode": "squash" if kind == "siglip2" else _resize_mode(images, size, squash_number=kind == "siglip"),
        "fill_color": 0,
    }


def _resize_mode(images: Mapping[str, Any], size: int, *, squash_number: bool) -> str:
    """open_clip's resize. Raises UsageError for a processor whose result is not a square of `size`, or is cropped twice."""
    resized, crop = images["size"], images["crop_size"] if images["do_center_crop"] else None
    if isinstance(resized, int):
        resized = {"height": resized, "width": resized} if squash_number else {"shortest_edge": resized}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    square = {"height": size, "width": size}
    if resized == square and crop in (None, square):
        return "squash"
    if resized == {"shortest_edge": size} and crop == square:
        return "shortest"
    raise UsageError(
        f"its images are resized to {images['size']} and cropped to {crop or 'nothing'}, but its image tower takes "
        f"{size} x {size}."
    )

"""Builds open_clip's network from the settings and tensors of a folder that `transformers` wrote."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.transformer import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from costl.pipeline.encode.transformers_config import CONFIG, weight_files
from costl.pipeline.errors import UsageError, first_few

CLIP_VOCABULARY = 49408  # words, with those that mark start and end
# What turns a name of open_clip into that of transformers, in this order. A * stands for q, k and v.
_NAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^text\.transformer\.(embeddings|encoder)\.", r"text_model.\1."),
        (r"^text\.proj\.", "text_projection."),
        (r"^text\.text_projection\.", "text_model.head."),
        (r"^text_projection$", "text_projection.weight"),
        (r"^visual\.proj$", "visual_projection.weight"),
        (r"^visual\.(transformer\.resblocks|trunk\.blocks)\.", "vision_model.encoder.layers."),
        (r"^(text\.)?transformer\.resblocks\.", "text_model.encoder.layers."),
        (r"^visual\.(conv1|trunk\.patch_embed\.proj)\.", "vision_model.embeddings.patch_embedding."),
        (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
        (r"^visual\.(positional_embedding|trunk\.pos_embed)$", "vision_model.embeddings.position_embedding.weight"),
        (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
        (r"^visual\.(ln_post|trunk\.norm)\.", "vision_model.post_layernorm."),
        (r"^(text\.)?token_embedding\.", "text_model.embeddings.token_embedding."),
        (r"^(text\.)?positional_embedding$", "text_model.embeddings.position_embedding.weight"),
        (r"^(text\.)?ln_final\.", "text_model.final_layer_norm."),
        (r"^visual\.trunk\.attn_pool\.latent$", "vision_model.head.probe"),
        (r"^visual\.trunk\.attn_pool\.proj\.", "vision_model.head.attention.out_proj."),
        (r"^visual\.trunk\.attn_pool\.(?:q|kv)\.", "vision_model.head.attention.in_proj_"),
        (r"^visual\.trunk\.attn_pool\.norm\.", "vision_model.head.layernorm."),
        (r"^visual\.trunk\.attn_pool\.mlp\.", "vision_model.head.mlp."),
        (r"\.(?:ln_|norm)([12])\.", r".layer_norm\1."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        (r"\.attn\.(?:out_proj|proj)\.", ".self_attn.out_proj."),
        (r"\.attn\.(?:in_proj_|qkv\.)", ".self_attn.*_proj."),
    )
]


def load_network(config: Mapping[str, Any], preprocess: Mapping[str, Any], folder: Path) -> nn.Module:
    """open_clip's network of the sizes in `config` with the tensors of a folder, in float32 and with its preprocessing.

    For `config` and `preprocess` see `transformers_config.TransformersConfig`. Raises UsageError for tensors that are missing,
    unknown or of other sizes, and without transformers if the text tower is one of its own.
    """
    network = _empty_network(config)
    state = _read_tensors(weight_files(folder))
    missing, mismatches, tensors, used = [], [], {}, set()
    for name, target in network.state_dict().items():
        sources = _sources(name)
        used.update(sources)
        absent = [source for source in sources if source not in state]
        missing += absent
        if absent:
            continue
        tensors[name] = _convert(name, [state[source] for source in sources], target)
        if tensors[name].shape != target.shape:
            mismatches.append(f"{sources[0]} is {list(state[sources[0]].shape)}")
    unknown = sorted(state.keys() - used)
    _refuse(folder, "tensors are missing", missing)
    _refuse(folder, "tensors are not of this architecture", unknown)
    _refuse(folder, f"tensors have other sizes than in {CONFIG}", mismatches)
    network.load_state_dict(tensors)
    open_clip.set_model_preprocess_cfg(network, dict(preprocess))
    return network


def tokenizer_settings(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What open_clip's text_cfg says about the tokenizer: the folder, or nothing for CLIP's own, which open_clip has."""
    own = "trunk" not in config and "bert" not in config and config["text_cfg"]["vocab_size"] == CLIP_VOCABULARY
    if own and _vocabulary(folder) in (None, _clip_vocabulary()):
        return {}
    return {"hf_tokenizer_name": str(folder)}


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """The words of a folder's tokenizer without those that mark start and end; None for a folder without a tokenizer."""
    for name, path in (("vocab.json", ()), ("tokenizer.json", ("model", "vocab"))):
        if (folder / name).is_file():
            try:
                words = json.loads((folder / name).read_text(encoding="utf-8"))
                for key in path:
                    words = words[key]
                return {word: number for word, number in words.items() if number < CLIP_VOCABULARY - 2}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{folder / name}: cannot be read ({error!r}). Get it again.") from error
    return None


def _clip_vocabulary() -> dict[str, int]:
    encoder: dict[str, int] = open_clip.SimpleTokenizer().encoder
    return {word: number for word, number in encoder.items() if number < CLIP_VOCABULARY - 2}


def _empty_network(config: Mapping[str, Any]) -> nn.Module:
    settings = dict(config)
    trunk, bert = settings.pop("trunk", None), settings.pop("bert", None)
    if trunk:
        # timm has a name for each size that was published, but no small or new ones: its class takes any size.
        small = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
        settings["vision_cfg"] = settings["vision_cfg"] | small
        network = open_clip.CustomTextCLIP(**_known(settings))
        network.visual.trunk = _trunk(**trunk)
        return network
    if bert:
        return _with_bert(settings, bert)
    return open_clip.CLIP(**_known(settings))


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    # The text tower needs no tokenizer to be built.
    text = {name: value for name, value in settings["text_cfg"].items() if not name.startswith(("tokenizer_", "hf_tokenizer"))}
    return {**settings, "text_cfg": text}


def _trunk(*, activation: str, eps: float, **sizes: Any) -> nn.Module:
    return VisionTransformer(
        num_classes=0,
        global_pool="map",
        class_token=False,
        act_layer=QuickGELU if activation == "quick" else partial(nn.GELU, approximate=activation),
        norm_layer=partial(nn.LayerNorm, eps=eps),
        **sizes,
    )


def _with_bert(settings: Mapping[str, Any], bert: Mapping[str, Any]) -> nn.Module:
    if find_spec("transformers") is None:
        raise UsageError("Chinese CLIP reads sentences with transformers: pip install 'costl[transformers]'.")
    text = {"hf_model_pretrained": False, "hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    with tempfile.TemporaryDirectory() as folder:  # open_clip reads the sizes from a file
        (Path(folder) / "config.json").write_text(json.dumps({**bert, "model_type": "bert"}), encoding="utf-8")
        return open_clip.CustomTextCLIP(**{**settings, "text_cfg": text | {"hf_model_name": folder}})


def _read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            state |= safetensors.torch.load_file(file)
        else:
            state |= torch.load(file, map_location="cpu", weights_only=True)
    # Earlier releases saved the numbers 0, 1, 2 ... as a tensor.
    return {name: tensor for name, tensor in state.items() if not name.endswith(".position_ids")}


def _sources(name: str) -> list[str]:
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return [name.replace("*", letter) for letter in "qkv"] if "*" in name else [name]


def _convert(name: str, sources: list[Tensor], target: Tensor) -> Tensor:
    value = torch.cat(sources) if len(sources) > 1 else sources[0]
    value = value.float()
    if name in ("visual.proj", "text_projection"):
        return value.T.contiguous()
    if ".attn_pool.q." in name:
        return value[: len(value) // 3]
    if ".attn_pool.kv." in name:
        return value[len(value) // 3 :]
    if name == "visual.trunk.patch_embed.proj.weight" and value.ndim == 2:
        # SigLIP 2 multiplies flat patches, in which the channel is the last axis.
        side = target.shape[-1]
        return value.reshape(len(value), side, side, -1).permute(0, 3, 1, 2).contiguous()
    # Axes of length one: the batch of the position embeddings, and the list of a single scale.
    only_ones_differ = [length for length in value.shape if length > 1] == [length for length in target.shape if length > 1]
    return value.reshape(target.shape) if only_ones_differ else value


def _refuse(folder: Path, problem: str, names: Iterable[str]) -> None:
    names = list(dict.fromkeys(names))
    if names:
        raise UsageError(f"{folder}: {len(names)} {problem} ({first_few(names)}). Check that config and weights belong together.")

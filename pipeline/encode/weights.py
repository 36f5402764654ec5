"""Finds the weights of a model by tag, file or folder, and builds the open_clip network with the settings of its training."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from huggingface_hub import constants as hub
from open_clip import pretrained as tags
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import nn

from costl.pipeline.encode.names import (
    OPEN_CLIP_CONFIG,
    SUFFIXES,
    check_names,
    is_file,
    is_transformers_folder,
    no_such_tag,
    weights_folder,
)
from costl.pipeline.encode.transformers_config import read_config
from costl.pipeline.encode.transformers_weights import load_network, tokenizer_settings
from costl.pipeline.errors import UsageError
from costl.pipeline.fingerprint import digest

_PROBE_S = 3.0
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    `name`: for messages and fingerprints, without a path. `architecture`: open_clip's name. `file`: the weights on disk.
    `trained_with`: what a tag records about its weights (quick_gelu, mean, std, interpolation, resize_mode), empty for an
    open_clip folder, which has its own settings. `config`: only for a folder of transformers, the network in the words of
    open_clip (see `transformers_config.TransformersConfig`); then `architecture` is empty, `file` is the folder, and
    `trained_with` is its preprocessing.
    """

    name: str
    architecture: str
    file: Path
    trained_with: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def find_source(model: str, weights: str) -> Source:
    """The source of `weights`: a tag of `model`, a FILE, TAG=FILE, or a DIR of open_clip or transformers (any model name).

    A tag that is not on this disk is downloaded. A FILE is read with the settings of a tag: TAG if given, else the tag
    whose name is part of the file name, else `openai` if the model has it, else the model's first tag. Raises UsageError
    for unknown names and missing files, and immediately if a download is needed and there is no network.
    """
    model = model.replace("/", "-")
    tag_settings = tags.get_pretrained_cfg(model, weights)
    if tag_settings:
        return Source(_trained_name(model, tag_settings), model, _fetch(model, weights, tag_settings), tag_settings)
    folder = weights_folder(weights)
    if folder:
        return _folder_source(folder)
    check_names(model, weights)
    return _file_source(model, weights)


def build_network(source: Source) -> nn.Module:
    """The network in float32 on the CPU, in evaluation mode, with its preprocessing in `visual.preprocess_cfg`.

    Never unpickles objects: reads safetensors, `torch.load(weights_only=True)`, or the archive that OpenAI published,
    identified by its hash. Raises UsageError when open_clip cannot load these weights into this architecture.
    """
    with explained(source):
        network = load_network(source.config, source.trained_with, source.file) if source.config else _open_clip_network(source)
    return network.eval().requires_grad_(False)


@contextmanager
def explained(source: Source) -> Iterator[None]:
    """Turns any error of loading the network of `source` into a UsageError that names its file."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # open_clip passes on all errors of torch, safetensors, timm and json
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UsageError(
            f"{source.file}: open_clip cannot load it as {source.name} ({reason[0][:200]}). "
            "Check that model and weights belong together."
        ) from error


def hub_is_reachable() -> bool:
    """Whether files can be downloaded from the hub of models; answers within a few seconds."""
    return not hub.HF_HUB_OFFLINE and _reachable(hub.ENDPOINT)


def create_open_clip(source: Source, *, load_weights: bool, **settings: Any) -> Any:
    """The network of open_clip's own architectures, with the weights of `source` or random ones; `settings` win over its own."""
    return open_clip.create_model(
        source.architecture,
        pretrained=str(source.file) if load_weights and not source.architecture.startswith("local-dir:") else None,
        load_weights=load_weights,
        require_pretrained=load_weights,
        force_quick_gelu=bool(source.trained_with.get("quick_gelu", False)),
        force_preprocess_cfg={key: source.trained_with[key] for key in _PREPROCESS if key in source.trained_with},
        weights_only=True,
        **_text_tower(source) | settings,
    )


def _open_clip_network(source: Source) -> Any:
    archive = is_torchscript(source.file)
    network = create_open_clip(source, load_weights=not archive)
    if archive:
        network.load_state_dict(_openai_state(source))
    return network


def hash_of_weights(network: nn.Module) -> str:
    """sha256 over the name, type, shape and bytes of all tensors, the same whether they come from a tag, file or folder."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _text_tower(source: Source) -> dict[str, Any]:
    """The settings of a text tower of transformers, with its config.json on this disk; empty for any other text tower.

    open_clip gives only a name, for which transformers would ask the hub, without network for a minute.
    """
    text = dict(open_clip.get_model_config(source.architecture)["text_cfg"])
    name = text.get("hf_model_name")
    if not name:
        return {}
    if find_spec("transformers") is None:
        raise UsageError(
            f"{source.name}: its text tower needs transformers, which is not installed. Run pip install 'costl[transformers]'."
        )
    folder = _text_tower_folder(source, name)
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}


def _text_tower_folder(source: Source, name: str) -> Path:
    """The folder with the config.json of a text tower: that of the weights, or one that was downloaded for a model's name."""
    is_folder = source.architecture.startswith("local-dir:")
    if is_folder and (source.file.parent / "config.json").is_file():
        return source.file.parent
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    if is_folder:
        raise UsageError(f"{source.file.parent}: the settings of the text tower are missing. Put there, of {name}, config.json.")
    if not hub_is_reachable():
        raise UsageError(
            f"{source.name}: the settings of its text tower {name} are not on this disk and cannot be downloaded. Connect once, "
            f"or give as weights a folder with open_clip_config.json, {HF_SAFE_WEIGHTS_NAME} and, of {name}, config.json and "
            "the files of the tokenizer."
        )
    return Path(huggingface_hub.hf_hub_download(name, "config.json")).parent


def _trained_name(model: str, trained_with: Mapping[str, Any]) -> str:
    # The activation is not part of the weights, so it is part of the name, as in open_clip's own names.
    quick_gelu = trained_with.get("quick_gelu", False) and not model.endswith("-quickgelu")
    return f"{model}-quickgelu" if quick_gelu else model


def _folder_source(folder: Path) -> Source:
    if is_transformers_folder(folder):
        return _transformers_source(folder)
    config = folder / OPEN_CLIP_CONFIG
    try:
        architecture = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{config}: not a readable open_clip config ({error!r}). Expected a JSON file with a model_cfg."
        ) from error
    return Source(f"config {digest(architecture)[:12]}", f"local-dir:{folder}", folder / HF_SAFE_WEIGHTS_NAME)


def _transformers_source(folder: Path) -> Source:
    config = read_config(folder)
    text = config.network["text_cfg"]
    network = {**config.network, "text_cfg": text | tokenizer_settings(folder, config.network)}
    return Source(f"config {digest(config.network)[:12]}", "", folder, config.preprocess, network)


def _file_source(model: str, weights: str) -> Source:
    tag, _, name = weights.rpartition("=") if not is_file(weights) else ("", "", weights)
    model_tags = tags.list_pretrained_tags_by_model(model)
    if not is_file(name):
        raise UsageError(no_such_tag(model, weights, model_tags))
    file = Path(os.path.expanduser(name))
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{file}: weights end in {', '.join(SUFFIXES)}, not in {file.suffix or 'nothing'}.")
    if tag and not tags.is_pretrained_cfg(model, tag):
        raise UsageError(no_such_tag(model, tag, model_tags))
    trained_with = tags.get_pretrained_cfg(model, tag or _tag_of(file, model_tags))
    return Source(_trained_name(model, trained_with), model, file, trained_with)


def _tag_of(file: Path, model_tags: list[str]) -> str:
    stem = file.stem.lower().replace("-", "_")
    default = "openai" if "openai" in model_tags else "".join(model_tags[:1])
    return max((tag for tag in model_tags if tag in stem), key=len, default=default)


def _fetch(model: str, tag: str, settings: Mapping[str, Any]) -> Path:
    """The file of a tag, downloaded only if it is not on this disk."""
    cached = _cached_file(settings)
    if cached:
        return cached
    address = f"{hub.ENDPOINT}/{settings['hf_hub']}" if settings.get("hf_hub") else settings["url"]
    if hub.HF_HUB_OFFLINE or not _reachable(address):  # the hub's own client would try again for half a minute
        host = urllib.parse.urlsplit(address).hostname
        raise UsageError(
            f"{model} weights {tag!r} are not on this disk and {host} cannot be reached. Connect once, or download "
            f"{_file_of(settings)} elsewhere and give its path as the weights: --weights FILE."
        )
    try:
        return Path(tags.download_pretrained(dict(settings)))
    except Exception as error:  # errors of the hub, of urllib and of the file system
        raise UsageError(
            f"{model} weights {tag!r} could not be downloaded ({str(error)[:200]}). Try again, or give a file."
        ) from error


def _file_of(settings: Mapping[str, Any]) -> str:
    """Where the file of a tag is, in words that fit a browser."""
    repository, _, name = settings.get("hf_hub", "").rpartition("/")
    return f"{name or HF_SAFE_WEIGHTS_NAME} of {hub.ENDPOINT}/{repository}" if repository else str(settings["url"])


def _cached_file(settings: Mapping[str, Any]) -> Path | None:
    repository, _, filename = settings.get("hf_hub", "").rpartition("/")
    safe_name = f"{Path(filename).stem}.safetensors"
    names = [safe_name, filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for name in names if repository else []:
        path = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    if not settings.get("url"):
        return None
    downloaded = Path("~/.cache/clip").expanduser() / Path(urllib.parse.urlsplit(settings["url"]).path).name
    return downloaded if downloaded.is_file() else None


def _reachable(address: str) -> bool:
    """Whether a connection to the address, or to the proxy that serves it, opens within a few seconds."""
    target = urllib.parse.urlsplit(urllib.request.getproxies().get("https") or address)
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((target.hostname or "", port), timeout=_PROBE_S).close()
    except OSError:
        return False
    return True


def is_torchscript(file: Path) -> bool:
    """Whether the file is a TorchScript program, as OpenAI published its weights."""
    if file.suffix == ".safetensors" or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _openai_state(source: Source) -> dict[str, torch.Tensor]:
    # OpenAI published programs, not tensors. Loading a program is safe only if it is theirs; the address of each program
    # contains its hash.
    published = source.trained_with.get("url", "").split("/")
    if hashlib.sha256(source.file.read_bytes()).hexdigest() not in published:
        raise UsageError(
            f"{source.file}: a TorchScript program that is not the one OpenAI published for {source.architecture}. "
            "Save its state_dict as safetensors and give that."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but these archives will not change
        state = torch.jit.load(str(source.file), map_location="cpu").state_dict()
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in ("input_resolution", "context_length", "vocab_size")
    }

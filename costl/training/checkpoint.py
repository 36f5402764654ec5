"""A checkpoint in one safetensors file: weights under their own names, everything else as JSON in its header."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from costl.config import Config
from costl.pipeline.errors import CacheError, first_few, next_step
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.strict_json import abbreviated, read_json

FORMAT = 1
# The only entry of the header: safetensors writes several in no fixed order, and equal checkpoints must be equal bytes.
HEADER = "costl"
# Starts the names of the tensors in `meta`, and the keys that stand for types that JSON does not have.
MARK = "~"
TENSOR, TUPLE, ITEMS = "~tensor", "~tuple", "~items"
# Submodules and parameters with another name in earlier versions: a pattern in their key, and what replaces the match.
# Applied in this order. No pattern matches a key of this version.
RENAMED_KEYS = (
    (r"^heads\.", ""),
    (r"^words\.", "word_projection."),
    (r"^sentence\.", "sentence_projection."),
    (r"^similarity\.", "similarity_projection."),
    (r"^text\.", "text_pool."),
    (r"^tokens\.", "token_mlp."),
    (r"^spatial\.to_clip\.", "spatial.to_encoder_space."),
    (r"^spatial\.ask_sentence\.", "spatial.sentence_query."),
    (r"^spatial\.ask_words\.", "spatial.word_query."),
    (r"^spatial\.where_gate\.", "spatial.coarse_gate."),
    (r"^spatial\.what_gate\.", "spatial.fine_gate."),
    (r"^spatial\.(coarse|fine)_gate\.place\.", r"spatial.\1_gate.position."),
    (r"^spatial\.what\.", "spatial.fine."),
    (r"^spatial\.fine\.null\.", "spatial.fine.null_logit."),
    (r"^spatial\.fine\.part\.", "spatial.fine.head_logits."),
    (r"^spatial\.fine\.order$", "spatial.fine.order_bias"),
    (r"^(layers\.\d+)\.null$", r"\1.null_tokens"),
    (r"^(layer|layers\.\d+)\.from_words\.", r"\1.cross_attention."),
    (r"^(layer|layers\.\d+)\.from_frames\.", r"\1.self_attention."),
    (r"^(layer|layers\.\d+)\.alone\.", r"\1.feed_forward."),
    (r"^(layers\.\d+\.local|pyramid\.local\.\d+)\.ask\.", r"\1.text_scale."),
    (r"^levels\.", "pyramid."),
    (r"^(pyramid\.scales\.\d+)\.halve\.", r"\1.convs."),
    (r"^open$", "pool_gate"),
    (r"^renew$", "update_gate"),
    (r"^moments\.", "moment_head."),
    (r"^saliency\.", "saliency_head."),
    (r"^moment_head\.trunk\.0\.", "moment_head.score_branch."),
    (r"^moment_head\.trunk\.1\.", "moment_head.span_branch."),
    (r"^joint_logit_scale$", "logit_scale"),
)
# Tensors of earlier versions that no model needs any more: they mapped frame tokens into the joint space.
REMOVED_KEYS = frozenset(["joint_norm_weight", "joint_norm_bias", "joint_norm_eps", "joint_projection"])
# The exceptions that a damaged or hostile file raises while it is read.
_READ_ERRORS = (
    *(SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError),
    *(AttributeError, OverflowError, MemoryError),
)


def checkpoint_path(folder: Path, name: str) -> Path:
    """The file of the checkpoint `name` ("best", "last") in a run folder."""
    return folder / f"{name}.safetensors"


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Writes weights and `meta`, completely or not at all; returns the path of the file.

    `meta` holds nested dicts (keys: str or int), lists, tuples, tensors and plain values, such as an optimizer's state
    and `rng_state()`. Tensors may be on any device. Raises CostlError when the file cannot be written.
    """
    stored = {key: _cpu_copy(tensor) for key, tensor in tensors.items()}
    assert not any(key.startswith(MARK) for key in stored), "names with ~ are reserved for meta"
    content = {"format": FORMAT, "meta": _to_json_value(meta, MARK, stored)}
    text = json.dumps(content | {"sha256": _digest(content, stored)}, sort_keys=True)
    path = checkpoint_path(folder, name)
    publish(path, safetensors.torch.save(stored, metadata={HEADER: text}))
    return path


def load_checkpoint(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and `meta` of `save_checkpoint`, on the CPU; the keys of tensors are those of this version.

    Raises CacheError for a missing or damaged checkpoint, and for a pickle: a pickle can run code, so none is opened.
    """
    path = checkpoint_path(folder, name)
    _refuse_missing_or_pickled(path)
    try:
        _refuse_odd_header(path)
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if header is None:
            raise CacheError(
                f"{path}: a safetensors file, but not a checkpoint of CoSTL. Give a run made by costl train."
            )
        meta = _meta_in(path, json.loads(header), stored)
    except _READ_ERRORS as error:
        raise CacheError(
            f"{path}: damaged ({abbreviated(error, 200)}). Use another checkpoint or train again."
        ) from error
    return with_current_keys({key: tensor for key, tensor in stored.items() if not key.startswith(MARK)}), meta


def refuse_oversized_settings(config: Config, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises CacheError for settings of a larger model than the weights are of: building it could take any amount of memory.

    `name` is the run or the file, for the message.
    """
    model = config.model
    temporal = config.temporal
    # A lower bound for every kind of model: it has so many square matrices, and so many rows.
    square_matrices = {"cls": temporal.layers, "adapter": len(temporal.strides)}.get(
        model.kind, temporal.layers + len(temporal.strides)
    )
    rows = temporal.null_tokens + temporal.kernel if model.kind == "costl" else 0
    fewest_weights = model.width * (model.width * max(1, square_matrices) + rows)
    if fewest_weights > sum(tensor.numel() for tensor in weights.values()):
        raise CacheError(
            f"{name}: settings of a larger model than its weights are of. Use another checkpoint or train again."
        )


def load_matching_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Loads all `weights` into the model; their keys may be those of an earlier version.

    Raises CacheError that names what does not fit, before any weight is changed. `source` is the run or the file, for the
    message.
    """
    weights = with_current_keys(weights)
    if not hasattr(model, "logit_scale"):  # earlier versions stored it for every kind of model
        weights.pop("logit_scale", None)
    # The models of earlier versions have no position reader.
    if hasattr(model, "position_reader") and not any(name.startswith("position_reader.") for name in weights):
        del model.position_reader
        model.register_module("position_reader", None)
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    problems = [f"no {name}" for name in expected if name not in shapes]
    problems += [f"unexpected {name}" for name in shapes if name not in expected]
    problems += [
        f"{name} is {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    if problems:
        raise CacheError(
            f"{source}: its weights do not fit its settings, they are of another model ({first_few(problems)}). Put its own "
            "back, or train again."
        )
    model.load_state_dict(weights)


def with_current_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the keys of this version; see `RENAMED_KEYS` and `REMOVED_KEYS`.

    An earlier key stays as it is where the current key is taken, so that the model refuses it as unexpected.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key in REMOVED_KEYS:
            continue
        current = _current_key(key)
        is_taken = current in renamed or (current != key and current in weights)
        renamed[key if is_taken else current] = tensor
    return renamed


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    return _digest({}, {name: _cpu_copy(tensor) for name, tensor in tensors.items()})


def rng_state() -> dict[str, Any]:
    """The states of torch's random generators, for `meta`. Training draws from no others: Python's `random` is used by
    libraries only."""
    state = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    return state | ({"mps": torch.mps.get_rng_state()} if torch.backends.mps.is_available() else {})


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores a `rng_state()`; the CUDA generators only when the number of devices is the same."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if torch.backends.mps.is_available() and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _meta_in(path: Path, content: Any, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CacheError(f"{path}: not in format {FORMAT}, the one this version reads. Train again.")
    expected = content.pop("sha256", None)
    if _digest(content, stored) != expected:
        raise CacheError(f"{path}: damaged (its content is not what was written). Use another checkpoint.")
    return dict(_from_json_value(content["meta"], stored))


@functools.lru_cache(maxsize=4096)  # most files hold the same keys
def _current_key(key: str) -> str:
    for pattern, replacement in RENAMED_KEYS:
        key = re.sub(pattern, replacement, key)
    return key


def _cpu_copy(tensor: Tensor) -> Tensor:
    # A copy: safetensors refuses tensors that share memory, as tied weights and views do.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _to_json_value(value: Any, name: str, stored: dict[str, Tensor]) -> Any:
    """The value as JSON can hold it; its tensors go to `stored`, named by their path in the value."""
    if isinstance(value, Tensor):
        stored[name] = _cpu_copy(value)
        return {TENSOR: name}
    if isinstance(value, Mapping):
        items = [[key, _to_json_value(inner, f"{name}/{key}", stored)] for key, inner in value.items()]
        plain = all(isinstance(key, str) and not key.startswith(MARK) for key in value)
        return dict(items) if plain else {ITEMS: items}
    if isinstance(value, list | tuple):
        values = [_to_json_value(inner, f"{name}/{index}", stored) for index, inner in enumerate(value)]
        return values if isinstance(value, list) else {TUPLE: values}
    return value


def _from_json_value(value: Any, stored: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json_value(inner, stored) for inner in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return stored[value[TENSOR]]
    if TUPLE in value:
        return tuple(_from_json_value(value[TUPLE], stored))
    if ITEMS in value:
        return {key: _from_json_value(inner, stored) for key, inner in value[ITEMS]}
    return {key: _from_json_value(inner, stored) for key, inner in value.items()}


def _digest(content: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(stored.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def _refuse_missing_or_pickled(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        names = sorted(checkpoint.stem for checkpoint in path.parent.glob("*.safetensors"))
        raise CacheError(f"{path}: no such checkpoint. This run has: {', '.join(names) or 'none'}.") from None
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). {next_step(error)}") from error
    # A zip archive (torch.save) or a bare pickle. A safetensors file starts with the length of its header, which may be the
    # same bytes; its ninth byte is the "{" of the header.
    if start.startswith((b"PK", b"\x80")) and not start.endswith(b"{"):
        raise CacheError(f"{path}: a pickle, which could run code, so it was not opened. Give a safetensors file.")


def _refuse_odd_header(path: Path) -> None:
    """Raises ValueError for a header longer than its file, or with a key that occurs twice: readers differ in which they use."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError(f"a header of {length} bytes")
        read_json(file.read(length).decode())

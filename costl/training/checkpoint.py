"""A checkpoint in one safetensors file: weights under their own names, everything else as JSON in its header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from costl.config import Config
from costl.pipeline.errors import CacheError, some
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.strict_json import read_json, shown

FORMAT = 1
# The header's only entry: safetensors writes several in no fixed order, and equal checkpoints shall be equal bytes.
HEADER = "costl"
# Starts the names of tensors that belong to `meta`, and the marks that stand for what JSON does not know.
MARK = "~"
TENSOR, TUPLE, ITEMS = "~tensor", "~tuple", "~items"
# What a file that is damaged, or was made to do harm, raises on its way to tensors and plain values.
_FOREIGN = (
    *(SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError),
    *(AttributeError, OverflowError, MemoryError),
)


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the checkpoint `name` ("best", "last") of a run folder lies."""
    return folder / f"{name}.safetensors"


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write weights and `meta`, all at once or not at all; gives the file's path.

    `meta` is any nest of dicts (keys: text or whole numbers), lists, tuples, tensors and plain values, so optimiser
    states and `rng_state()` go in as they are. Tensors may live on any device. Raises CostlError when the disk refuses.
    """
    stored = {key: _at_rest(tensor) for key, tensor in tensors.items()}
    assert not any(key.startswith(MARK) for key in stored), "names with ~ are kept for meta"
    content = {"format": FORMAT, "meta": _packed(meta, MARK, stored)}
    text = json.dumps(content | {"sha256": _digest(content, stored)}, sort_keys=True)
    path = checkpoint_path(folder, name)
    publish(path, safetensors.torch.save(stored, metadata={HEADER: text}))
    return path


def load_checkpoint(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, meta) as `save_checkpoint` was given them, on the CPU.

    Raises CacheError when there is no such checkpoint, when it is damaged, and when it is a pickle, which could run
    anything: those are never opened.
    """
    path = checkpoint_path(folder, name)
    _refuse_missing_or_pickled(path)
    try:
        _refuse_odd_header(path)
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if header is None:
            raise CacheError(f"{path}: a safetensors file, but no checkpoint of CoSTL. Give a run made by train.")
        meta = _meta_in(path, json.loads(header), stored)
    except _FOREIGN as error:
        raise CacheError(f"{path}: damaged ({shown(error, 200)}). Use another checkpoint or train again.") from error
    return {key: tensor for key, tensor in stored.items() if not key.startswith(MARK)}, meta


def refuse_larger(config: Config, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises CacheError for settings of a model larger than its weights, which would take any amount of memory to build."""
    model, temporal = config.model, config.temporal
    # What every kind of model has at the least: a square matrix for each of these, a row for each of those.
    squares = {"cls": temporal.layers, "adapter": len(temporal.strides)}.get(
        model.kind, temporal.layers + len(temporal.strides)
    )
    rows = temporal.null_tokens + temporal.kernel if model.kind == "costl" else 0
    least = model.width * (model.width * max(1, squares) + rows)
    if least > sum(tensor.numel() for tensor in weights.values()):
        raise CacheError(
            f"{name}: settings of a larger model than its weights are of. Use another checkpoint or train again."
        )


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], *, of: str) -> None:
    """Puts all `weights` into the model. Raises CacheError naming what does not fit, before any of it is changed; `of`
    says whose weights they are."""
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    problems = [f"no {name}" for name in wanted if name not in found]
    problems += [f"{name} besides" for name in found if name not in wanted]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise CacheError(
            f"{of}: its weights do not fit its settings, they are of another model ({some(problems)}). Put its own "
            "back, or train again."
        )
    model.load_state_dict(dict(weights))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    return _digest({}, {name: _at_rest(tensor) for name, tensor in tensors.items()})


def rng_state() -> dict[str, Any]:
    """The state of every random generator that training draws from, ready for `meta`: torch's. Python's own is drawn from by
    libraries, whoever knows when, and by nothing here."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put `rng_state()` back; CUDA generators only where the number of devices is the same."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _meta_in(path: Path, content: Any, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CacheError(f"{path}: not in format {FORMAT}, the one this version reads. Train again.")
    expected = content.pop("sha256", None)
    if _digest(content, stored) != expected:
        raise CacheError(f"{path}: damaged (its content is not what was written). Use another checkpoint.")
    return dict(_unpacked(content["meta"], stored))


def _at_rest(tensor: Tensor) -> Tensor:
    # A copy: safetensors refuses tensors that share memory, as tied weights and views do.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _packed(value: Any, name: str, stored: dict[str, Tensor]) -> Any:
    """The value as JSON can hold it; its tensors go to `stored` under the path that leads to them."""
    if isinstance(value, Tensor):
        stored[name] = _at_rest(value)
        return {TENSOR: name}
    if isinstance(value, Mapping):
        items = [[key, _packed(inner, f"{name}/{key}", stored)] for key, inner in value.items()]
        plain = all(isinstance(key, str) and not key.startswith(MARK) for key in value)
        return dict(items) if plain else {ITEMS: items}
    if isinstance(value, list | tuple):
        values = [_packed(inner, f"{name}/{index}", stored) for index, inner in enumerate(value)]
        return values if isinstance(value, list) else {TUPLE: values}
    return value


def _unpacked(value: Any, stored: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(inner, stored) for inner in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return stored[value[TENSOR]]
    if TUPLE in value:
        return tuple(_unpacked(value[TUPLE], stored))
    if ITEMS in value:
        return {key: _unpacked(inner, stored) for key, inner in value[ITEMS]}
    return {key: _unpacked(inner, stored) for key, inner in value.items()}


def _digest(content: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refuse_missing_or_pickled(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        known = sorted(found.stem for found in path.parent.glob("*.safetensors"))
        raise CacheError(f"{path}: no such checkpoint. This run has: {', '.join(known) or 'none'}.") from None
    # A zip archive (torch.save) or a bare pickle. A safetensors file may start so too, with the length of its header, which
    # is JSON and begins at the ninth byte.
    if start.startswith((b"PK", b"\x80")) and not start.endswith(b"{"):
        raise CacheError(f"{path}: a pickle, which could run anything when opened; it is not. Give a safetensors file.")


def _refuse_odd_header(path: Path) -> None:
    """Raises ValueError for a header longer than its file, or one that says something twice: readers differ in what they take."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError(f"a header of {length} bytes")
        read_json(file.read(length).decode())

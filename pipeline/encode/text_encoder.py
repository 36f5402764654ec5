"""The text tower of a CLIP alone, for searching: the image tower is neither built nor read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from jaxtyping import Float
from open_clip.model import convert_to_custom_text_state_dict, resize_text_pos_embed
from safetensors import safe_open
from torch import Tensor, nn

from costl.pipeline.device import pick_device
from costl.pipeline.encode.text import SentenceEncoder
from costl.pipeline.encode.tokenizer import load_tokenizer
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.encode.weights import Source, build_network, create_open_clip, explained, is_torchscript
from costl.pipeline.errors import first_few

# open_clip always builds an image tower. This one has almost no parameters, and is thrown away.
_PLACEHOLDER = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1, "head_width": 64}
# The names in checkpoints of MobileCLIP's authors, which open_clip translates only as a whole.
_FOREIGN = "image_encoder."


class TextEncoder:
    """Encodes sentences as `CLIPEncoder.encode_text` does, to the last bit, with the text tower of the same weights."""

    def __init__(self, source: Source, *, device: str = "cpu"):
        self.name = source.name
        torch_device = pick_device(device)
        network = build_text_network(source).to(torch_device)
        self._sentences = SentenceEncoder(network, load_tokenizer(source), device=torch_device, name=source.name)

    def encode(self, texts: Sequence[str]) -> list[SentenceTokens]:
        """The tokens of each sentence, encoded in one batch; raises as `SentenceEncoder.encode` does."""
        return self._sentences.encode(texts)

    def sentence_vectors(self, texts: Sequence[str]) -> Float[np.ndarray, "q e"]:
        """The sentences in the joint space, of length one."""
        return np.stack([encoded.sentence for encoded in self.encode(texts)])


def build_text_network(source: Source) -> nn.Module:
    """The network of `source` without its image tower, in float32 on the CPU, in evaluation mode.

    Reads only the text tower from the file where its format allows that. Raises UsageError as `weights.build_network` does.
    """
    state = _text_state(source)
    if state is None:
        network = build_network(source)
    else:
        with explained(source), _without_warnings():
            network = create_open_clip(source, load_weights=False, vision_cfg=dict(_PLACEHOLDER))
            _load(network, state)
    del network.visual
    return network.eval().requires_grad_(False)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """open_clip warns in the log that the network has random weights, which are replaced."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _text_state(source: Source) -> dict[str, Tensor] | None:
    """The tensors of everything but the image tower; None for files that must be loaded as a whole."""
    if source.config or is_torchscript(source.file):
        return None
    state = _read(source.file)
    if any(name.startswith(_FOREIGN) for name in state):
        return None
    return {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; of the image tower in a safetensors file only the names matter, so they are not read."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys() if not name.startswith("visual.")}  # noqa: SIM118
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    state: Mapping[str, Tensor] = content.get("state_dict", content)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _load(network: Any, state: dict[str, Tensor]) -> None:
    """Loads the tensors as open_clip's `load_checkpoint` does, which reads a whole file and wants an image tower."""
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state:
            state[name] = state[name].reshape(getattr(network, name).shape)
    state.pop("text.transformer.embeddings.position_ids", None)
    resize_text_pos_embed(state, network)
    missing, unexpected = network.load_state_dict(state, strict=False)
    wrong = [name for name in (*missing, *unexpected) if not name.startswith(("visual.", "logit_bias"))]
    if wrong:
        raise ValueError(f"the text tower does not fit: {first_few(wrong)}")

"""The frozen CLIP encoder: frames to patch tokens and joint vectors, sentences to word tokens and joint vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from costl.pipeline.device import default_precision, pick_device
from costl.pipeline.encode.image_tower import ImageTower
from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.encode.text import SentenceEncoder
from costl.pipeline.encode.tokenizer import load_tokenizer
from costl.pipeline.encode.types import FrameFeatures, JointSpace, SentenceTokens
from costl.pipeline.encode.weights import Source, build_network, find_source, hash_of_weights
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.fingerprint import canonical_json

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_encoder(
    model: str = "ViT-B-32",
    weights: str = "openai",
    *,
    device: str = "cpu",
    precision: str | None = None,
    patches: bool = True,
) -> CLIPEncoder:
    """The frozen network of `model` with `weights` (a tag, FILE, TAG=FILE or DIR, see `weights.find_source`).

    `precision` is that of the image tower: fp32 (the default on a CPU), fp16 (the default on a GPU) or bf16; sentences are
    always encoded in fp32. Without `patches` the encoder returns frame tokens only. Raises UsageError for unknown names,
    devices and precisions, and for image towers without a feature map.
    """
    torch_device = pick_device(device)
    precision = precision or default_precision(torch_device.type)
    if precision not in _DTYPES:
        raise UsageError(f"precision {precision!r}: expected one of {', '.join(_DTYPES)}.")
    source = find_source(model, weights)
    return CLIPEncoder(
        build_network(source), source=source, device=torch_device, precision=precision, patches=patches
    )


def load_encoders(
    model: str, weights: str, *, devices: str, precision: str | None = None, patches: bool = True
) -> list[CLIPEncoder]:
    """The same network on each of `devices`, separated by commas, in the precision of the first unless it is given.

    Raises UsageError as `load_encoder` does.
    """
    first, *others = [name.strip() for name in devices.split(",")]
    other_devices = [pick_device(name) for name in others]
    encoder = load_encoder(model, weights, device=first, precision=precision, patches=patches)
    return [encoder, *(encoder.copy_to(device) for device in other_devices)]


class CLIPEncoder:
    """A frozen CLIP on one device, made by `load_encoder`.

    `name`: the architecture. `weights_hash`: sha256 of the weights. `width`: c, the width of visual tokens. `patch_grid`:
    (rows, columns) of the patches in its output. `image_size`: (height, width) of its input. `joint`: the space that frames
    and sentences share. In shapes, n are frames, p patches, and e is the width of the joint space.
    """

    def __init__(self, network: Any, *, source: Source, device: torch.device, precision: str, patches: bool = True):
        self.name = source.name
        self.device = device
        self.precision = precision
        self.weights_hash = hash_of_weights(network)
        self.preprocess = Preprocess.of(network.visual.preprocess_cfg)
        self.image_size = self.preprocess.size
        self._tokenizer = load_tokenizer(source)
        self._tower = ImageTower(network.visual, self.image_size, source.name)
        self.patch_grid = self._tower.patch_grid if patches else (0, 0)
        self.width = self._tower.width
        self.joint = _joint_space(network, self._tower.joint_width)
        self._patches = patches
        self._network: Any = network.to(device)
        self._network.visual.to(_DTYPES[precision])
        self._sentences = SentenceEncoder(self._network, self._tokenizer, device=device, name=self.name)

    def fingerprint(self) -> dict[str, str]:
        """Everything about this network that decides a token."""
        return {
            "model": self.name,
            "weights": self.weights_hash,
            "preprocess": canonical_json(asdict(self.preprocess)),
            "precision": self.precision,
            "open_clip": version("open_clip_torch"),
        }

    def prepare(self, pixels: np.ndarray) -> Float[Tensor, "n 3 y x"]:
        """uint8 RGB [n h w 3] -> network input on the device, equal to open_clip's PIL transform (see `preprocess`)."""
        # Copied: a decoder's shared memory may be read-only, and is reused while the device still reads.
        frames = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        frames.numpy()[...] = pixels
        return prepare(frames.to(self.device, non_blocking=self.device.type == "cuda"), self.preprocess)

    def encode(self, pixels: np.ndarray) -> FrameFeatures:
        """uint8 RGB [n h w 3] -> tokens float16 [n 1+p c] and joint vectors float16 [n e].

        Joint vectors are CLIP's own image features. Raises CostlError when a value does not fit into float16.
        """
        return self.encode_images(self.prepare(pixels))

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> FrameFeatures:
        """Network input, as `prepare` returns it -> features, as `encode` returns them."""
        return self.start(images)()

    @torch.inference_mode()
    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], FrameFeatures]:
        """Starts `encode_images`; the returned function waits for the features, and raises as `encode` does.

        A GPU works in the meantime, so the next batch can be started first. Raises torch's error when memory is full.
        """
        images = images.to(_DTYPES[self.precision])
        tokens, joint = self._tower.encode(self._network.visual, images, with_patches=self._patches)
        fetch = _start_fetch((tokens, joint), f"{self.name} in {self.precision}: visual tokens")
        return lambda: FrameFeatures(*fetch())

    def copy_to(self, device: torch.device) -> CLIPEncoder:
        """The same encoder on another device."""
        other = copy.copy(self)
        other.device = device
        other._network = copy.deepcopy(self._network).to(device)
        other._sentences = SentenceEncoder(other._network, self._tokenizer, device=device, name=self.name)
        return other

    def encode_text(self, texts: Sequence[str]) -> list[SentenceTokens]:
        """The tokens of each sentence, encoded in one batch; raises as `SentenceEncoder.encode` does."""
        return self._sentences.encode(texts)


def _start_fetch(tensors: Sequence[Tensor], name: str) -> Callable[[], list[np.ndarray]]:
    """Starts to copy tensors to main memory as float16; the returned function waits for them and checks their values."""
    on_gpu = tensors[0].is_cuda
    stored = [tensor.to(torch.float16) for tensor in tensors]
    on_host = [tensor.to("cpu", non_blocking=on_gpu) for tensor in stored]
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in stored]).all().to("cpu", non_blocking=on_gpu)
    copied = torch.cuda.current_stream(tensors[0].device).record_event() if on_gpu else None

    def fetch() -> list[np.ndarray]:
        if copied is not None:
            copied.synchronize()
        if not bool(finite):
            raise CostlError(
                f"{name} do not fit into float16. Try --precision bf16 or fp32; if that fails, the weights are damaged."
            )
        return [tensor.numpy() for tensor in on_host]

    return fetch


def _joint_space(network: Any, width: int) -> JointSpace:
    bias = getattr(network, "logit_bias", None)
    return JointSpace(
        width=width,
        logit_scale=float(network.logit_scale.exp().reshape(-1)[0]),
        logit_bias=0.0 if bias is None else float(bias.reshape(-1)[0]),
    )

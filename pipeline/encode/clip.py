"""The frozen CLIP encoder: frames to patch tokens, sentences to word tokens, and the joint space they share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn

from costl.pipeline.device import pick_device
from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.encode.weights import Source, build_network, find_source, hash_of_weights
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.fingerprint import canonical_json

TEXT_BATCH = 64
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOLERANCE = 1e-4  # largest difference of unit-length float32 features that count as the same
_BlockTokens = tuple[Tensor | None, Tensor]  # prefix tokens and patches of one block


def load_encoder(
    model: str = "ViT-B-32",
    weights: str = "openai",
    *,
    device: str = "cpu",
    precision: str | None = None,
    layers: int = 1,
    patches: bool = True,
) -> CLIPEncoder:
    """The frozen network of `model` with `weights` (a tag, FILE, TAG=FILE or DIR, see `weights.find_source`).

    `precision` is that of the image tower: fp32 (the default on a CPU), fp16 (the default on a GPU) or bf16; sentences are
    always encoded in fp32. The encoder gives the tokens of the last `layers` blocks, without `patches` only the frame
    tokens. Raises UsageError for unknown names, devices and precisions, for more layers than the tower has, and for towers
    whose image feature is not a norm and a projection of one token (attention pooling, convolutional towers).
    """
    torch_device = pick_device(device)
    precision = precision or default_precision(torch_device)
    if precision not in _DTYPES:
        raise UsageError(f"precision {precision!r}: expected one of {', '.join(_DTYPES)}.")
    source = find_source(model, weights)
    network = build_network(source)
    return CLIPEncoder(
        network, source=source, device=torch_device, precision=precision, layers=layers, patches=patches
    )


def default_precision(device: torch.device) -> str:
    """The precision of the image tower on a device unless another one is named."""
    return "fp16" if device.type == "cuda" else "fp32"


def load_encoders(
    model: str, weights: str, *, devices: str, precision: str | None = None, layers: int = 1, patches: bool = True
) -> list[CLIPEncoder]:
    """The same network on each of `devices`, separated by commas.

    Raises UsageError as `load_encoder` does, for a GPU named twice, and for devices with different default precisions if
    no `precision` is given.
    """
    names = [name.strip() for name in devices.split(",")]
    torch_devices = [pick_device(name) for name in names]
    for name, device in zip(names, torch_devices, strict=True):
        if device.type != "cpu" and torch_devices.count(device) > 1:
            raise UsageError(f"device {devices!r}: {name} is named twice, as {device}. Name every GPU once.")
    defaults = {device.type: default_precision(device) for device in torch_devices}
    if precision is None and len(set(defaults.values())) > 1:
        listed = ", ".join(f"{device_type} in {default}" for device_type, default in defaults.items())
        raise UsageError(f"device {devices!r}: {listed}; one cache holds one precision. Name it: --precision fp32.")
    first = load_encoder(model, weights, device=names[0], precision=precision, layers=layers, patches=patches)
    return [first, *(first.copy_to(device) for device in torch_devices[1:])]


class CLIPEncoder:
    """A frozen CLIP on one device, made by `load_encoder`.

    `name`: the architecture. `weights_hash`: sha256 of the weights. `width`: c, the width of visual tokens. `patch_grid`:
    (rows, columns) of the patches it gives. `image_size`: (height, width) of its input. `joint`: the map into the joint
    space. In shapes, n are frames and k the layers.
    """

    def __init__(
        self,
        network: Any,
        *,
        source: Source,
        device: torch.device,
        precision: str,
        layers: int = 1,
        patches: bool = True,
    ):
        self.name = source.name
        self.device = device
        self.precision = precision
        self.weights_hash = hash_of_weights(network)
        self.preprocess = Preprocess.of(network.visual.preprocess_cfg)
        self.image_size = self.preprocess.size
        self._tokenizer = _tokenizer(source)
        grid, self.joint, self._frame_token = _examine(network, self.image_size, source.name)
        self.patch_grid = grid if patches else (0, 0)
        self._layers = layers
        self._patches = patches
        _check_layers(network, self.image_size, source.name, layers)
        self.width = len(self.joint.norm_weight)
        self._network: Any = network.to(device)
        self._network.visual.to(_DTYPES[precision])
        self._last_blocks: Callable[[Any, Tensor, int], list[_BlockTokens]] = _last_blocks

    def fingerprint(self) -> dict[str, str]:
        """Everything about this network that decides a token."""
        return {
            "model": self.name,
            "weights": self.weights_hash,
            "preprocess": canonical_json(asdict(self.preprocess)),
            "precision": self.precision,
            "open_clip": version("open_clip_torch"),
        }

    def prepare(self, pixels: np.ndarray | Tensor) -> Float[Tensor, "n 3 y x"]:
        """uint8 RGB [n h w 3] -> network input on the device, equal to open_clip's PIL transform (see `preprocess`)."""
        if isinstance(pixels, np.ndarray):
            # Copied: a decoder's shared memory may be read-only, and is reused while the device still reads.
            frames = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            frames.numpy()[...] = pixels
        else:
            frames = pixels
        return prepare(frames.to(self.device, non_blocking=True), self.preprocess)

    def tokens(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """uint8 RGB [n h w 3] -> float16 [n 1+p c]: the frame token, then the patches row by row; [n k 1+p c] of k layers.

        Tokens are taken after a block and before the final norm, so that `joint.project(tokens[:, 0])` is CLIP's own image
        feature; of several layers the last block comes last. Raises CostlError when a value does not fit into float16.
        """
        return self.encode_images(self.prepare(pixels))

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> np.ndarray:
        """Network input, as `prepare` gives it -> float16 tokens, as `tokens` gives them."""
        return self.start(images)()

    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], np.ndarray]:
        """Starts `encode_images`; the function it returns waits for the tokens, and raises as `tokens` does.

        A GPU works in the meantime, so the next batch can be started first. Raises torch's error when memory is full.
        """
        return _start_fetch(self._forward(images), f"{self.name} in {self.precision}: visual tokens")

    @torch.inference_mode()
    def _forward(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n *layers tokens c"]:
        blocks = self._last_blocks(self._network.visual, images.to(_DTYPES[self.precision]), self._layers)
        layers = [self._frame_and_patches(prefix, patches) for prefix, patches in blocks]
        return torch.stack(layers, dim=1) if self._layers > 1 else layers[0]

    def _frame_and_patches(self, prefix: Tensor | None, patches: Tensor) -> Tensor:
        frame = self._frame_token(prefix, patches)
        return torch.cat([frame, patches], dim=1) if self._patches else frame

    def copy_to(self, device: torch.device) -> CLIPEncoder:
        """The same encoder on another device."""
        other = copy.copy(self)
        other.device = device
        other._network = copy.deepcopy(self._network).to(device)
        return other

    def compile(self, batch: int) -> None:
        """Compiles the image tower for batches of this size, which takes about a minute.

        Raises whatever the compiler raises if it cannot compile; the encoder then stays as it was.
        """
        compiled = torch.compile(_last_blocks, dynamic=False)
        with torch.inference_mode():
            compiled(self._network.visual, self.blank(batch), self._layers)
        self._last_blocks = compiled

    def blank(self, batch: int) -> Float[Tensor, "n 3 y x"]:
        """`batch` empty frames as network input, for a trial."""
        return torch.zeros(batch, 3, *self.image_size, device=self.device, dtype=_DTYPES[self.precision])

    def encode_text(self, texts: Sequence[str]) -> list[SentenceTokens]:
        """The tokens of each sentence. Raises UsageError for a sentence without a word."""
        sentences: list[SentenceTokens] = []
        for start in range(0, len(texts), TEXT_BATCH):
            sentences += self._encode_text_batch(texts[start : start + TEXT_BATCH])
        return sentences

    @torch.inference_mode()
    def _encode_text_batch(self, texts: Sequence[str]) -> list[SentenceTokens]:
        ids = self._tokenizer(list(texts))
        output = self._network.forward_intermediates(text=ids.to(self.device), text_indices=1, normalize=True)
        # A word after its context varies with each word before it; its own embedding does not. From both together the
        # model learns a query about few videos far sooner (README, design notes).
        own = getattr(self._network, "text", self._network).token_embedding(ids.to(self.device))
        both = torch.cat([own, output["text_intermediates"][0]], dim=-1)
        tokens = _start_fetch(both, f"{self.name}: word tokens")()
        sentences = output["text_features"].float().cpu().numpy()
        # The ids of a sentence are [start, words, end, padding].
        ends = (ids == self._tokenizer.eot_token_id).int().argmax(dim=1).tolist()
        for text, end in zip(texts, ends, strict=True):
            if end < 2:
                raise UsageError(f"query {text!r}: no word in it. Give it a sentence or remove it.")
        longest = ids.shape[1] - 2
        return [
            SentenceTokens(
                tokens[i, 1:end].copy(),
                sentences[i].copy(),
                truncated=len(self._tokenizer.encode(text)) > longest,
                texts=tuple(self._tokenizer.decode([token]) for token in ids[i, 1:end].tolist()),
            )
            for i, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]


def _start_fetch(tokens: Tensor, name: str) -> Callable[[], np.ndarray]:
    """Starts to copy tokens to main memory as float16; the function it returns waits for them and checks their values."""
    stored = tokens.to(torch.float16)
    on_host = _copy_to_host(stored)
    finite = _copy_to_host(torch.isfinite(stored).all())
    wait = _wait_for(stored.device)

    def fetch() -> np.ndarray:
        wait()
        if not bool(finite):
            raise CostlError(
                f"{name} do not fit into float16. Try --precision bf16 or fp32; if that fails, the weights are damaged."
            )
        return on_host.numpy()

    return fetch


def _copy_to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _wait_for(device: torch.device) -> Callable[[], None]:
    """A function that waits for the work that the device has been given until now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _last_blocks(visual: Any, images: Tensor, count: int | None) -> list[_BlockTokens]:
    """The raw output of the last `count` blocks (None: of all), the last block last.

    Of each block the prefix tokens [n prefix c], None if the tower has none, and the patches [n p c].
    """
    output = visual.forward_intermediates(
        images,
        indices=count,
        output_fmt="NLC",
        output_extra_tokens=True,
        normalize_intermediates=False,
        intermediates_only=True,
    )
    patches = output["image_intermediates"]
    prefixes = output.get("image_intermediates_prefix") or [None] * len(patches)
    return list(zip(prefixes, patches, strict=True))


@torch.inference_mode()
def _examine(network: Any, size: tuple[int, int], name: str) -> tuple[tuple[int, int], JointSpace, Any]:
    """The patch grid, the joint space, and the function that makes the frame token, found by a trial on one image.

    The frame token is the one whose projection is CLIP's own image feature.
    """
    refusal = (
        f"{name}: its image feature is not a norm and a projection of one token (attention pooling or a convolutional "
        "tower). Choose a plain ViT such as ViT-B-32."
    )
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        joint = _joint_space(network)
        ((prefix, patches),) = _last_blocks(network.visual, image, 1)
        as_grid = network.visual.forward_intermediates(image, indices=1, intermediates_only=True)
        rows, columns = as_grid["image_intermediates"][0].shape[-2:]
        features = {frame: joint.project(frame(prefix, patches)[:, 0].numpy()) for frame in (_cls_token, _mean_token)}
    except (AttributeError, TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(refusal) from error
    expected = network.encode_image(image, normalize=True).numpy()
    if not np.isfinite(expected).all():
        raise CostlError(f"{name}: its features are not finite. The weights are damaged; get them again.")
    for frame, feature in features.items():
        if rows * columns == patches.shape[1] and np.allclose(feature, expected, rtol=0, atol=_TOLERANCE):
            return (rows, columns), joint, frame
    raise UsageError(refusal)


def _joint_space(network: Any) -> JointSpace:
    """The last norm and the projection; raises AttributeError if the tower has none."""
    visual = network.visual
    if hasattr(visual, "trunk"):  # a timm tower
        trunk = visual.trunk
        norm = trunk.norm if isinstance(trunk.norm, nn.LayerNorm) else trunk.fc_norm
        linear = visual.head.proj if len(visual.head) else trunk.head
        projection = linear.weight.T
    else:
        norm = visual.ln_post
        projection = visual.proj
    return JointSpace(
        norm_weight=norm.weight.float().numpy(),
        norm_bias=norm.bias.float().numpy(),
        norm_eps=float(norm.eps),
        projection=projection.float().contiguous().numpy(),
        logit_scale=float(network.logit_scale.exp().reshape(-1)[0]),
    )


def _cls_token(prefix: Tensor | None, patches: Tensor) -> Tensor:
    return patches.mean(dim=1, keepdim=True) if prefix is None else prefix[:, :1]


def _mean_token(prefix: Tensor | None, patches: Tensor) -> Tensor:
    return patches.mean(dim=1, keepdim=True)


@torch.inference_mode()
def _check_layers(network: Any, size: tuple[int, int], name: str, layers: int) -> None:
    if layers > 1:  # `_examine` has already tried the last block
        blocks = len(_last_blocks(network.visual, torch.zeros(1, 3, *size), None))
        if layers > blocks:
            raise UsageError(
                f"{name} has {blocks} blocks, asked for the last {layers}. Choose --layers {blocks} or less."
            )


def _tokenizer(source: Source) -> Any:
    try:
        tokenizer = open_clip.get_tokenizer(source.architecture)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(
            f"{source.name}: its tokenizer needs files that are not here ({error}). Choose a model with CLIP's own."
        ) from error
    if not hasattr(tokenizer, "eot_token_id"):
        raise UsageError(
            f"{source.name}: its tokenizer marks no end of text. Choose a model with CLIP's own tokenizer."
        )
    return tokenizer

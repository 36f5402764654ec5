"""Frozen CLIP: frames to patch tokens, sentences to word tokens, and the map into the space they share."""

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

from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.encode.weights import Source, build, find_source, hash_of
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.fingerprint import canonical

__all__ = ["Clip", "Joint", "Words", "load_clip", "load_clips", "pick_device"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TEXT_BATCH = 64
_SAME = 1e-4  # largest difference of unit-length features that counts as the same in float32


def load_clip(
    model: str = "ViT-B-32",
    weights: str = "openai",
    *,
    device: str = "cpu",
    precision: str | None = None,
    layers: int = 1,
    patches: bool = True,
) -> Clip:
    """The frozen network of `model` with `weights` (a tag, FILE, TAG=FILE or DIR, see `weights.find_source`).

    `precision` is that of the image tower: fp32 (the CPU's default), fp16 (the GPU's) or bf16; sentences are always
    encoded in fp32. It gives the tokens of the last `layers` blocks, without `patches` those of the frames alone.
    Raises UsageError for unknown names, devices and precisions, for more layers than there are, and for towers whose
    image feature is not a norm and a projection of one token (attention pooling, convolutional towers).
    """
    place = pick_device(device)
    chosen = precision or usual_precision(place)
    if chosen not in _DTYPES:
        raise UsageError(f"precision {chosen!r}: expected one of {', '.join(_DTYPES)}.")
    source = find_source(model, weights)
    return Clip(build(source), source=source, device=place, precision=chosen, layers=layers, patches=patches)


def usual_precision(device: torch.device) -> str:
    """In what the image tower computes there unless it is told otherwise."""
    return "fp16" if device.type == "cuda" else "fp32"


def load_clips(
    model: str, weights: str, *, devices: str, precision: str | None = None, layers: int = 1, patches: bool = True
) -> list[Clip]:
    """The same network on each of `devices`, which commas separate. Raises UsageError as `load_clip` does, for a GPU
    named twice, and for devices that would compute in different precisions.
    """
    names = [name.strip() for name in devices.split(",")]
    places = [pick_device(name) for name in names]
    for name, place in zip(names, places, strict=True):
        if place.type != "cpu" and places.count(place) > 1:
            raise UsageError(f"device {devices!r}: {name} is named twice, as {place}. Name every GPU once.")
    usual = {place.type: usual_precision(place) for place in places}
    if precision is None and len(set(usual.values())) > 1:
        told = ", ".join(f"{kind} in {chosen}" for kind, chosen in usual.items())
        raise UsageError(f"device {devices!r}: {told}; one cache holds one precision. Name it: --precision fp32.")
    first = load_clip(model, weights, device=names[0], precision=precision, layers=layers, patches=patches)
    return [first, *(first.beside(place) for place in places[1:])]


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises UsageError for a device that this machine does not have."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}). Try cpu or auto."
        ) from error


class Clip:
    """A frozen CLIP on one device; made by `load_clip`.

    `name` the architecture, `weights_hash` sha256 of the weights in use, `width` c of visual tokens, `patch_grid`
    (rows, columns) of the patches it gives, `image_size` (height, width) of the input, `joint` the map into the joint space.
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
        self.weights_hash = hash_of(network)
        self.preprocess = Preprocess.of(network.visual.preprocess_cfg)
        self.image_size = self.preprocess.size
        self._tokenizer = _tokenizer(source)
        grid, self.joint, self._frame_token = _examine(network, self.image_size, source.name)
        self.patch_grid = grid if patches else (0, 0)
        self._layers, self._patches = layers, patches
        _check_layers(network, self.image_size, source.name, layers)
        self.width = len(self.joint.norm_weight)
        self._network: Any = network.to(device)
        self._network.visual.to(_DTYPES[precision])
        self._last_blocks: Callable[[Any, Tensor, int], list[tuple[Tensor | None, Tensor]]] = _last_blocks

    def fingerprint(self) -> dict[str, str]:
        """Everything about this network that decides a token."""
        return {
            "model": self.name,
            "weights": self.weights_hash,
            "preprocess": canonical(asdict(self.preprocess)),
            "precision": self.precision,
            "open_clip": version("open_clip_torch"),
        }

    def prepare(self, pixels: np.ndarray | Tensor) -> Float[Tensor, "n 3 y x"]:
        """uint8 RGB [n h w 3] -> network input on the device, equal to open_clip's PIL transform (see `resize`)."""
        if isinstance(pixels, np.ndarray):
            # Copied: a decoder's shared memory may be read-only, and is reused while the device still reads.
            frames = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            frames.numpy()[...] = pixels
        else:
            frames = pixels
        return prepare(frames.to(self.device, non_blocking=True), self.preprocess)

    def tokens(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """uint8 RGB [n h w 3] -> float16 [n 1+p c]: the frame token, then the patches row by row; [n k 1+p c] of k layers.

        Taken after the last block and before the final norm, so that `joint.project(tokens[:, 0])` is CLIP's own image
        feature; of several layers the last block's come last. Raises CostlError when a value is not finite.
        """
        return self.encode_images(self.prepare(pixels))

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> np.ndarray:
        """Network input, as `prepare` gives it, -> float16 as `tokens` has it."""
        return self.start(images)()

    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], np.ndarray]:
        """Begins what `encode_images` does; calling what it gives waits for the tokens, and may raise as it does.

        A GPU works meanwhile, so that the next batch can be begun first. Raises torch's error when memory is full.
        """
        return _fetch(self._forward(images), f"{self.name} in {self.precision}: visual tokens")

    def beside(self, device: torch.device) -> Clip:
        """The same network on a further device."""
        other = copy.copy(self)
        other.device, other._network = device, copy.deepcopy(self._network).to(device)
        return other

    def compile(self, batch: int) -> None:
        """Compiles the image tower for batches of this size; the first one is compiled here, which takes a minute.

        Raises whatever the compiler does where it cannot; the network is then as it was.
        """
        compiled = torch.compile(_last_blocks, dynamic=False)
        with torch.inference_mode():
            compiled(self._network.visual, self.blank(batch), self._layers)
        self._last_blocks = compiled

    def blank(self, batch: int) -> Float[Tensor, "n 3 y x"]:
        """So many empty frames as network input, for a trial."""
        return torch.zeros(batch, 3, *self.image_size, device=self.device, dtype=_DTYPES[self.precision])

    def encode_text(self, texts: Sequence[str]) -> list[Words]:
        """One Words for each sentence. Raises UsageError for a sentence without a word in it."""
        batches = range(0, len(texts), TEXT_BATCH)
        return [words for start in batches for words in self._encode_texts(texts[start : start + TEXT_BATCH])]

    @torch.inference_mode()
    def _forward(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n *layers tokens c"]:
        found = self._last_blocks(self._network.visual, images.to(_DTYPES[self.precision]), self._layers)
        layers = [self._frame_and_patches(*block) for block in found]
        return torch.stack(layers, dim=1) if self._layers > 1 else layers[0]

    def _frame_and_patches(self, prefix: Tensor | None, patches: Tensor) -> Tensor:
        frame = self._frame_token(prefix, patches)
        return torch.cat([frame, patches], dim=1) if self._patches else frame

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> list[Words]:
        ids = self._tokenizer(list(texts))
        output = self._network.forward_intermediates(text=ids.to(self.device), text_indices=1, normalize=True)
        # A word after its context varies with every word before it; its own embedding does not, and a query about few
        # videos is learned far sooner from the two together (README, design notes).
        own = getattr(self._network, "text", self._network).token_embedding(ids.to(self.device))
        tokens = _finite(torch.cat([own, output["text_intermediates"][0]], dim=-1), f"{self.name}: word tokens")
        sentences = output["text_features"].float().cpu().numpy()
        # [start word ... word end padding]
        ends = (ids == self._tokenizer.eot_token_id).int().argmax(dim=1).tolist()
        longest = ids.shape[1] - 2
        for text, end in zip(texts, ends, strict=True):
            if end < 2:
                raise UsageError(f"query {text!r}: no word in it. Give it a sentence or remove it.")
        return [
            Words(
                tokens[i, 1:end].copy(),
                sentences[i].copy(),
                truncated=len(self._tokenizer.encode(text)) > longest,
                texts=tuple(self._tokenizer.decode([token]) for token in ids[i, 1:end].tolist()),
            )
            for i, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]


def _cls(prefix: Tensor | None, patches: Tensor) -> Tensor:
    return patches.mean(dim=1, keepdim=True) if prefix is None else prefix[:, :1]


def _mean(prefix: Tensor | None, patches: Tensor) -> Tensor:
    return patches.mean(dim=1, keepdim=True)


def _finite(tokens: Tensor, what: str) -> np.ndarray:
    return _fetch(tokens, what)()


def _fetch(tokens: Tensor, what: str) -> Callable[[], np.ndarray]:
    """Sends tokens on their way to main memory; calling what it gives waits for them and checks them."""
    stored = tokens.to(torch.float16)
    here, finite, arrive = _arriving(stored), _arriving(torch.isfinite(stored).all()), _arrival(stored.device)

    def fetched() -> np.ndarray:
        arrive()
        if not bool(finite):
            raise CostlError(
                f"{what} do not fit into float16. Try --precision bf16 or fp32; if that fails, the weights are damaged."
            )
        return here.numpy()

    return fetched


def _arriving(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _arrival(device: torch.device) -> Callable[[], None]:
    """Waits for all that was asked of the device until now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _last_blocks(visual: Any, images: Tensor, count: int | None) -> list[tuple[Tensor | None, Tensor]]:
    """The raw output of the last `count` blocks (None: of all): prefix tokens [n k c], or None where the tower has none,
    and patches [n p c]; the last block comes last."""
    output = visual.forward_intermediates(
        images,
        indices=count,
        output_fmt="NLC",
        output_extra_tokens=True,
        normalize_intermediates=False,
        intermediates_only=True,
    )
    patches = output["image_intermediates"]
    return list(zip(output.get("image_intermediates_prefix") or [None] * len(patches), patches, strict=True))


@torch.inference_mode()
def _check_layers(network: Any, size: tuple[int, int], name: str, layers: int) -> None:
    if layers > 1:  # the last block alone was tried already
        blocks = len(_last_blocks(network.visual, torch.zeros(1, 3, *size), None))
        if layers > blocks:
            raise UsageError(
                f"{name} has {blocks} blocks, asked for the last {layers}. Choose --layers {blocks} or less."
            )


@torch.inference_mode()
def _examine(network: Any, size: tuple[int, int], name: str) -> tuple[tuple[int, int], Joint, Any]:
    """The patch grid, the joint space, and which frame token gives CLIP's own image feature: tried on one frame."""
    refusal = (
        f"{name}: its image feature is not a norm and a projection of one token (attention pooling or a convolutional "
        "tower). Choose a plain ViT such as ViT-B-32."
    )
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        joint = _joint(network)
        ((prefix, patches),) = _last_blocks(network.visual, image, 1)
        as_picture = network.visual.forward_intermediates(image, indices=1, intermediates_only=True)
        rows, columns = as_picture["image_intermediates"][0].shape[-2:]
        tried = {frame: joint.project(frame(prefix, patches)[:, 0].numpy()) for frame in (_cls, _mean)}
    except (AttributeError, TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(refusal) from error
    truth = network.encode_image(image, normalize=True).numpy()
    if not np.isfinite(truth).all():
        raise CostlError(f"{name}: its features are not finite. The weights are damaged; get them again.")
    for frame, feature in tried.items():
        if rows * columns == patches.shape[1] and np.allclose(feature, truth, rtol=0, atol=_SAME):
            return (rows, columns), joint, frame
    raise UsageError(refusal)


def _joint(network: Any) -> Joint:
    """Reads the last norm and the projection; raises AttributeError where a tower has no such thing."""
    visual = network.visual
    if hasattr(visual, "trunk"):  # a timm tower
        trunk = visual.trunk
        norm = trunk.norm if isinstance(trunk.norm, nn.LayerNorm) else trunk.fc_norm
        linear = visual.head.proj if len(visual.head) else trunk.head
        projection = linear.weight.T
    else:
        norm, projection = visual.ln_post, visual.proj
    return Joint(
        norm_weight=norm.weight.float().numpy(),
        norm_bias=norm.bias.float().numpy(),
        norm_eps=float(norm.eps),
        projection=projection.float().contiguous().numpy(),
        logit_scale=float(network.logit_scale.exp().reshape(-1)[0]),
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

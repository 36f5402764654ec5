"""Frozen CLIP: frames to patch tokens, sentences to word tokens, and the map into the space they share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import CostlError, UsageError
from pipeline.features import Joint, Words
from pipeline.fingerprint import canonical
from pipeline.resize import Preprocess, prepare
from pipeline.weights import Source, build, find_source, hash_of

__all__ = ["Clip", "Joint", "Words", "load_clip", "pick_device"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TEXT_BATCH = 64
_SAME = 1e-4  # largest difference of unit-length features that counts as the same in float32


def load_clip(
    model: str = "ViT-B-32", weights: str = "openai", *, device: str = "cpu", precision: str | None = None
) -> Clip:
    """The frozen network of `model` with `weights` (a tag, FILE, TAG=FILE or DIR, see `weights.find_source`).

    `precision` is that of the image tower: fp32 (the CPU's default), fp16 (the GPU's) or bf16; sentences are always
    encoded in fp32. Raises UsageError for unknown names, devices and precisions, and for towers whose image feature
    is not a norm and a projection of one token (attention pooling, convolutional towers).
    """
    place = pick_device(device)
    chosen = precision or ("fp16" if place.type == "cuda" else "fp32")
    if chosen not in _DTYPES:
        raise UsageError(f"precision {chosen!r}: expected one of {', '.join(_DTYPES)}.")
    source = find_source(model, weights)
    return Clip(build(source), source=source, device=place, precision=chosen)


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
    (rows, columns) of the patches, `image_size` (height, width) of the input, `joint` the map into the joint space.
    """

    def __init__(self, network: Any, *, source: Source, device: torch.device, precision: str):
        self.name = source.name
        self.device = device
        self.precision = precision
        self.weights_hash = hash_of(network)
        self.preprocess = Preprocess.of(network.visual.preprocess_cfg)
        self.image_size = self.preprocess.size
        self._tokenizer = _tokenizer(source)
        self.patch_grid, self.joint, self._frame_token = _examine(network, self.image_size, source.name)
        self.width = len(self.joint.norm_weight)
        self._network: Any = network.to(device)
        self._network.visual.to(_DTYPES[precision])

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
        # Copied: a decoder's shared memory may be read-only, and is reused while the device still reads.
        frames = torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels
        return prepare(frames.to(self.device), self.preprocess)

    def tokens(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """uint8 RGB [n h w 3] -> float16 [n 1+p c]: the frame token, then the patches row by row.

        Taken after the last block and before the final norm, so that `joint.project(tokens[:, 0])` is CLIP's own image
        feature. Raises CostlError when a value is not finite.
        """
        return self.encode_images(self.prepare(pixels))

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> np.ndarray:
        """Network input, as `prepare` gives it, -> float16 [n 1+p c]; halves the batch when the GPU is full."""
        try:
            tokens = self._forward(images)
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                raise CostlError(f"{self.name}: not even one frame fits on {self.device}. Try --device cpu.") from error
            half = len(images) // 2
            logging.getLogger(__name__).warning("the GPU is full: %d frames at once become %d.", len(images), half)
            return np.concatenate([self.encode_images(images[:half]), self.encode_images(images[half:])])
        return _finite(tokens, f"{self.name} in {self.precision}: visual tokens")

    def encode_text(self, texts: Sequence[str]) -> list[Words]:
        """One Words for each sentence. Raises UsageError for a sentence without a word in it."""
        batches = range(0, len(texts), TEXT_BATCH)
        return [words for start in batches for words in self._encode_texts(texts[start : start + TEXT_BATCH])]

    @torch.inference_mode()
    def _forward(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n tokens c"]:
        prefix, patches = _last_block(self._network.visual, images.to(_DTYPES[self.precision]))
        return torch.cat([self._frame_token(prefix, patches), patches], dim=1)

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
    stored = tokens.to(torch.float16)
    if not bool(torch.isfinite(stored).all()):
        raise CostlError(
            f"{what} do not fit into float16. Try --precision bf16 or fp32; if that fails, the weights are damaged."
        )
    return stored.cpu().numpy()


def _last_block(visual: Any, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """The last block's raw output: prefix tokens [n k c], or None where the tower has none, and patches [n p c]."""
    output = visual.forward_intermediates(
        images,
        indices=1,
        output_fmt="NLC",
        output_extra_tokens=True,
        normalize_intermediates=False,
        intermediates_only=True,
    )
    prefix = output.get("image_intermediates_prefix")
    return (prefix[0] if prefix else None), output["image_intermediates"][0]


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
        prefix, patches = _last_block(network.visual, image)
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

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

from costl.pipeline.device import default_precision, pick_device
from costl.pipeline.encode.preprocess import Preprocess, prepare
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.encode.weights import Source, build_network, find_source, hash_of_weights
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.fingerprint import canonical_json

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOLERANCE = 1e-4  # largest difference of unit-length float32 features that count as the same


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
    devices and precisions, and for towers whose image feature is not a norm and a projection of one token (attention
    pooling, convolutional towers).
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
    (rows, columns) of the patches in its output. `image_size`: (height, width) of its input. `joint`: the map into the
    joint space. In shapes, n are frames and p patches.
    """

    def __init__(self, network: Any, *, source: Source, device: torch.device, precision: str, patches: bool = True):
        self.name = source.name
        self.device = device
        self.precision = precision
        self.weights_hash = hash_of_weights(network)
        self.preprocess = Preprocess.of(network.visual.preprocess_cfg)
        self.image_size = self.preprocess.size
        self._tokenizer = _tokenizer(source)
        grid, self.joint, self._frame_token = _examine(network, self.image_size, source.name)
        self.patch_grid = grid if patches else (0, 0)
        self.width = len(self.joint.norm_weight)
        self._patches = patches
        self._network: Any = network.to(device)
        self._network.visual.to(_DTYPES[precision])

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
        return prepare(frames.to(self.device, non_blocking=True), self.preprocess)

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 RGB [n h w 3] -> float16 [n 1+p c]: the frame token, then the patches row by row.

        Tokens are taken after the last block and before the final norm, so that `joint.project(tokens[:, 0])` is CLIP's own
        image feature. Raises CostlError when a value does not fit into float16.
        """
        return self.encode_images(self.prepare(pixels))

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> np.ndarray:
        """Network input, as `prepare` returns it -> float16 tokens, as `tokens` returns them."""
        return self.start(images)()

    @torch.inference_mode()
    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], np.ndarray]:
        """Starts `encode_images`; the returned function waits for the tokens, and raises as `tokens` does.

        A GPU works in the meantime, so the next batch can be started first. Raises torch's error when memory is full.
        """
        prefix, patches = _last_block(self._network.visual, images.to(_DTYPES[self.precision]))
        tokens = self._frame_token(prefix, patches)
        if self._patches:
            tokens = torch.cat([tokens, patches], dim=1)
        return _start_fetch(tokens, f"{self.name} in {self.precision}: visual tokens")

    def copy_to(self, device: torch.device) -> CLIPEncoder:
        """The same encoder on another device."""
        other = copy.copy(self)
        other.device = device
        other._network = copy.deepcopy(self._network).to(device)
        return other

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> list[SentenceTokens]:
        """The tokens of each sentence, encoded in one batch. Raises UsageError for a sentence without a word."""
        ids = self._tokenizer(list(texts))
        on_device = ids.to(self.device)
        output = self._network.forward_intermediates(text=on_device, text_indices=1, normalize=True)
        # A word after its context varies with each word before it; its own embedding does not. From both together the
        # model learns a query about few videos far sooner.
        embedding = getattr(self._network, "text", self._network).token_embedding(on_device)
        both = torch.cat([embedding, output["text_intermediates"][0]], dim=-1)
        tokens = _start_fetch(both, f"{self.name}: word tokens")()
        sentences = output["text_features"].float().cpu().numpy()
        # The ids of a sentence are [start, words, end, padding].
        ends = (ids == self._tokenizer.eot_token_id).int().argmax(dim=1).tolist()
        longest = ids.shape[1] - 2
        encoded = []
        for i, (text, end) in enumerate(zip(texts, ends, strict=True)):
            if end < 2:
                raise UsageError(f"query {text!r}: no word in it. Give it a sentence or remove it.")
            sentence = SentenceTokens(
                tokens[i, 1:end].copy(),
                sentences[i].copy(),
                truncated=len(self._tokenizer.encode(text)) > longest,
                texts=tuple(self._tokenizer.decode([token]) for token in ids[i, 1:end].tolist()),
            )
            encoded.append(sentence)
        return encoded


def _start_fetch(tokens: Tensor, name: str) -> Callable[[], np.ndarray]:
    """Starts to copy tokens to main memory as float16; the returned function waits for them and checks their values."""
    on_gpu = tokens.is_cuda
    stored = tokens.to(torch.float16)
    on_host = stored.to("cpu", non_blocking=on_gpu)
    finite = torch.isfinite(stored).all().to("cpu", non_blocking=on_gpu)
    copied = torch.cuda.current_stream(tokens.device).record_event() if on_gpu else None

    def fetch() -> np.ndarray:
        if copied is not None:
            copied.synchronize()
        if not bool(finite):
            raise CostlError(
                f"{name} do not fit into float16. Try --precision bf16 or fp32; if that fails, the weights are damaged."
            )
        return on_host.numpy()

    return fetch


def _last_block(visual: Any, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """The raw output of the last block: its prefix tokens [n prefix c], None if the tower has none, and patches [n p c]."""
    output = visual.forward_intermediates(
        images,
        indices=1,
        output_fmt="NLC",
        output_extra_tokens=True,
        normalize_intermediates=False,
        intermediates_only=True,
    )
    prefixes = output.get("image_intermediates_prefix")
    return prefixes[0] if prefixes else None, output["image_intermediates"][0]


@torch.inference_mode()
def _examine(network: Any, size: tuple[int, int], name: str) -> tuple[tuple[int, int], JointSpace, Any]:
    """The patch grid, the joint space, and the function that makes the frame token, found by a trial on one image.

    The frame token is the one whose projection is CLIP's own image feature.
    """
    refusal = (
        f"{name} cannot be used: {_other_pooling(network.visual)}. CoSTL needs an image feature that is the last norm and a "
        "projection of one token: of the class token, or of the mean of the patches before the norm. Models that have it "
        "are ViT-B-32, ViT-B-16 and ViT-L-14."
    )
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        joint = _joint_space(network)
        prefix, patches = _last_block(network.visual, image)
        as_grid = network.visual.forward_intermediates(image, indices=1, intermediates_only=True)
        rows, columns = as_grid["image_intermediates"][0].shape[-2:]
        candidates = [_mean_token] if prefix is None else [_first_token, _mean_token]
        features = {token: joint.project(token(prefix, patches)[:, 0].numpy()) for token in candidates}
    except (AttributeError, TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(refusal) from error
    expected = network.encode_image(image, normalize=True).numpy()
    if not np.isfinite(expected).all():
        raise CostlError(f"{name}: its features are not finite. The weights are damaged; get them again.")
    for token, feature in features.items():
        if rows * columns == patches.shape[1] and np.allclose(feature, expected, rtol=0, atol=_TOLERANCE):
            return (rows, columns), joint, token
    raise UsageError(refusal)


def _other_pooling(visual: Any) -> str:
    """How a tower makes its image feature if not from one token, as far as its parts say."""
    tower = getattr(visual, "trunk", visual)
    if getattr(tower, "attn_pool", None) is not None:
        return "it pools the patches by attention"
    if not (hasattr(tower, "blocks") or hasattr(tower, "transformer")):
        return "its image tower is not a vision transformer"
    norm_after_mean = getattr(tower, "final_ln_after_pool", False) or isinstance(getattr(tower, "fc_norm", None), nn.LayerNorm)
    if "avg" in (getattr(tower, "pool_type", ""), getattr(tower, "global_pool", "")) and not norm_after_mean:
        return "it takes the mean of the patches after the last norm"
    return "its image feature is made in another way"


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


def _first_token(prefix: Any, patches: Tensor) -> Tensor:
    return prefix[:, :1]


def _mean_token(prefix: Any, patches: Tensor) -> Tensor:
    return patches.mean(dim=1, keepdim=True)


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

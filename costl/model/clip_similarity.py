"""How similar a frame and a sentence are for the frozen CLIP itself: an input of the model."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.contrast import unit_length
from costl.training.precision import full_precision

_JOINT_TENSORS = ("norm_weight", "norm_bias", "projection")
_JOINT_NUMBERS = ("norm_eps", "logit_scale")


@torch.no_grad()
def clip_similarity(
    model: Any,
    tokens: Float[Tensor, "v t s c"],
    frame_mask: Bool[Tensor, "v t"],
    video: Int[Tensor, "b"],
    sentence: Float[Tensor, "b e"],
) -> Float[Tensor, "b t"]:
    """Similarity of frame and sentence in the frozen CLIP, minus its mean over the video, times CLIP's logit scale.

    In float32: the similarities of a video differ little, and the scale multiplies a rounding error by a hundred.
    """
    frames = tokens[:, :, 0]
    mask = frame_mask[video]
    with full_precision(frames.device):
        if model.joint_normed:
            weight, bias = model.joint_norm_weight, model.joint_norm_bias
            frames = F.layer_norm(frames, frames.shape[-1:], weight, bias, model.joint_norm_eps)
        frame_embeddings = unit_length(frames @ model.joint_projection)
        similarity = torch.einsum("bte,be->bt", frame_embeddings[video], sentence)
        mean = (similarity * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return (similarity - mean) * model.joint_logit_scale


def register_joint_space(model: nn.Module, joint: dict[str, Tensor]) -> None:
    """Stores the encoder's joint space in the model: its tensors as buffers, its numbers as plain values.

    With a number on a device, the host would wait for it in every forward. Checkpoints store the numbers as tensors next
    to the weights, and an exported model identifies its CLIP by them.
    """
    for name in _JOINT_TENSORS:
        model.register_buffer(f"joint_{name}", joint[name])
    for name in _JOINT_NUMBERS:
        _set_joint_number(model, name, joint[name])
    # A switch that the cache decides, not a weight: it is not in checkpoints.
    model.joint_normed = bool(joint["normed"])  # type: ignore[assignment]
    # Both hooks have public names only since PyTorch 2.5.
    model._register_state_dict_hook(_write_joint_numbers)
    model._register_load_state_dict_pre_hook(_read_joint_numbers, with_module=True)


def _write_joint_numbers(model: nn.Module, weights: dict[str, Tensor], prefix: str, _: object) -> None:
    for name in _JOINT_NUMBERS:
        number = getattr(model, f"joint_{name}")
        weights[f"{prefix}joint_{name}"] = torch.tensor(number, dtype=torch.float32)


def _read_joint_numbers(
    model: nn.Module, weights: dict[str, Tensor], prefix: str, _: object, __: bool, missing: list[str], *___: object
) -> None:
    for name in _JOINT_NUMBERS:
        key = f"{prefix}joint_{name}"
        if key in weights:
            _set_joint_number(model, name, weights.pop(key))
        else:
            missing.append(key)


def _set_joint_number(model: nn.Module, name: str, number: Tensor) -> None:
    """Rounds the number to float32, as checkpoints store it: a trained and a loaded model agree to the last bit."""
    setattr(model, f"joint_{name}", number.to(torch.float32).item())

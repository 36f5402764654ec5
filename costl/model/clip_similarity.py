"""How similar a frame and a sentence are for the frozen CLIP itself: an input of the model."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from costl.model.contrast import unit_length
from costl.model.inputs import ModelInputs
from costl.training.precision import full_precision

_JOINT_SPACE = ("norm_weight", "norm_bias", "projection", "norm_eps", "logit_scale")


def register_joint_space(model: nn.Module, joint: dict[str, Tensor]) -> None:
    """Stores CLIP's map into the joint space in the model, as buffers: an exported model identifies its CLIP by them."""
    for name in _JOINT_SPACE:
        model.register_buffer(f"joint_{name}", joint[name].to(torch.float32))
    # F.layer_norm takes a number, and to read one from a device the host would wait in every forward.
    model.joint_eps = model.joint_norm_eps.item()  # type: ignore[operator, assignment]
    # The cache decides whether tokens go through the norm; this is no weight and not in checkpoints.
    model.joint_normed = bool(joint["normed"])  # type: ignore[assignment]


@torch.no_grad()
def clip_similarity(model: Any, inputs: ModelInputs) -> Float[Tensor, "b t"]:
    """Similarity of frame and sentence in the frozen CLIP, minus its mean over the video, times CLIP's logit scale.

    In float32: the similarities of a video differ little, and the scale multiplies a rounding error by a hundred.
    """
    frames = inputs.tokens[:, :, 0]
    mask = inputs.frame_mask[inputs.video]
    with full_precision(frames.device):
        if model.joint_normed:
            weight, bias = model.joint_norm_weight, model.joint_norm_bias
            frames = F.layer_norm(frames, frames.shape[-1:], weight, bias, model.joint_eps)
        frame_embeddings = unit_length(frames @ model.joint_projection)
        similarity = torch.einsum("bte,be->bt", frame_embeddings[inputs.video], inputs.sentence)
        mean = (similarity * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return (similarity - mean) * model.joint_logit_scale

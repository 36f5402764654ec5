"""How similar a frame and a sentence are for the frozen CLIP itself: an input of the model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from costl.model.inputs import ModelInputs
from costl.training.precision import full_precision


@torch.no_grad()
def clip_similarity(inputs: ModelInputs, logit_scale: Float[Tensor, ""]) -> Float[Tensor, "b t"]:
    """Similarity of frame and sentence in the frozen CLIP, minus its mean over the video, times CLIP's logit scale.

    In float32: the similarities of a video differ little, and the scale multiplies a rounding error by a hundred.
    """
    mask = inputs.frame_mask[inputs.video]
    with full_precision(mask.device):
        similarity = torch.einsum("bte,be->bt", inputs.joint[inputs.video], inputs.sentence)
        mean = (similarity * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return (similarity - mean) * logit_scale

"""The image tower of any CLIP: its last feature map as tokens, and the image feature that it makes itself."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from costl.pipeline.errors import CostlError, UsageError


class ImageTower:
    """How to read an image tower, found by a trial on one image. It does not hold the tower.

    `patch_grid`: (rows, columns) of the last feature map before pooling. `width`: c of its tokens. `joint_width`: e of its
    image features. Raises UsageError for a tower that gives no feature map, CostlError for damaged weights.
    """

    def __init__(self, visual: Any, size: tuple[int, int], name: str):
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self._has_prefix = _has_prefix_tokens(visual)
        # A class token that does not become the image feature is no summary of the frame.
        self._uses_prefix = self._has_prefix and not _pools_by_mean(visual)
        try:
            with torch.inference_mode():
                feature_map, _, features = self._forward(visual, image)
        except (AttributeError, TypeError, AssertionError, KeyError) as error:
            raise UsageError(
                f"{name} cannot be used: open_clip gives no feature map of its image tower ({error}). "
                "`costl data models` lists the models that have one."
            ) from error
        if not (torch.isfinite(feature_map).all() and torch.isfinite(features).all()):
            raise CostlError(f"{name}: its features are not finite. The weights are damaged; get them again.")
        self.width, rows, columns = feature_map.shape[1:]
        self.patch_grid = (rows, columns)
        self.joint_width = features.shape[1]

    def encode(
        self, visual: Any, images: Float[Tensor, "n 3 y x"], *, with_patches: bool = True
    ) -> tuple[Float[Tensor, "n s c"], Float[Tensor, "n e"]]:
        """The frame token and, `with_patches`, the patches row by row; and the image features, float32 of length one.

        Tokens are taken before the final norm. The frame token is the class token, or the mean of the patches where the
        tower has none or pools by the mean.
        """
        feature_map, prefix, features = self._forward(visual, images)
        patches = feature_map.flatten(2).transpose(1, 2)
        frame = prefix[:, :1] if prefix is not None and self._uses_prefix else patches.mean(dim=1, keepdim=True)
        tokens = torch.cat([frame, patches], dim=1) if with_patches else frame
        return tokens, F.normalize(features.float(), dim=-1)

    def _forward(self, visual: Any, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The feature map [n c y x], the prefix tokens [n prefix c] if there are any, and the image features [n e]."""
        output = visual.forward_intermediates(
            images,
            indices=1,
            output_fmt="NCHW",
            output_extra_tokens=self._has_prefix,
            normalize_intermediates=False,
        )
        prefixes = output.get("image_intermediates_prefix")
        return output["image_intermediates"][0], prefixes[0] if prefixes else None, output["image_features"]


def _has_prefix_tokens(visual: Any) -> bool:
    trunk = getattr(visual, "trunk", None)  # of a timm tower
    return hasattr(visual, "class_embedding") if trunk is None else getattr(trunk, "num_prefix_tokens", 0) > 0


def _pools_by_mean(visual: Any) -> bool:
    tower = getattr(visual, "trunk", visual)
    return "avg" in (getattr(tower, "pool_type", ""), getattr(tower, "global_pool", ""))

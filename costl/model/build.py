"""From settings to a model: the one of this project, or a baseline that takes and gives the same."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from costl.config import Config
from costl.model import costl
from costl.model.baselines.adapter import AdapterModel
from costl.model.baselines.cls import ClsModel
from costl.model.costl import CoSTL
from costl.pipeline.errors import CacheError, UsageError

if TYPE_CHECKING:
    from costl.pipeline.cache.reader import CacheReader

Model = CoSTL | ClsModel | AdapterModel
ADAPTER_ROUNDS = 4  # as published


def build_model(
    config: Config, *, clip_width: int, word_width: int, patch_grid: tuple[int, int], joint: dict[str, Tensor]
) -> Model:
    """What `model.kind` names, untrained, for features of these sizes; see `costl.model.costl.build_model`."""
    model, temporal = config.model, config.temporal
    if model.kind == "costl":
        return costl.build_model(
            config, clip_width=clip_width, word_width=word_width, patch_grid=patch_grid, joint=joint
        )
    baseline: partial[ClsModel] | partial[AdapterModel]
    if model.kind == "cls":
        # Twice as many layers make up for the spatial encoder and the pyramid: about as many parameters.
        baseline = partial(ClsModel, layers=2 * temporal.layers)
    else:
        baseline = partial(AdapterModel, strides=tuple(temporal.strides), rounds=ADAPTER_ROUNDS)
    return baseline(
        clip_width=clip_width,
        word_width=word_width,
        joint=joint,
        width=model.width,
        heads=model.heads,
        dropout=model.dropout,
        input_dropout=model.input_dropout,
    )


def build_for(config: Config, features: CacheReader) -> Model:
    """The untrained model of these settings for the features of this cache.

    Raises CacheError when it has no words, UsageError for a model that looks at patches where frames have none.
    """
    if config.patches and features.patch_grid == (0, 0):
        asked, instead = f"spatial.steps is {config.spatial.steps}", "Leave spatial.steps out, or at 0."
        if config.model.kind == "adapter":
            asked, instead = "model.kind is adapter", "Choose cls, or costl with spatial.steps at 0."
        raise UsageError(
            f"{asked}, but the frames in {features.path} have no patches to look at: they were imported, or extracted "
            f"with --tokens cls. {instead}"
        )
    joint = {f.name: torch.as_tensor(getattr(features.joint, f.name)) for f in fields(features.joint)}
    if not len(features.word_table()):
        raise CacheError(f"{features.path}: no annotated query. Add annotations and run costl extract again.")
    return build_model(
        config,
        clip_width=joint["projection"].shape[0],
        word_width=features.word_table().counts()["channels"],
        patch_grid=features.patch_grid,
        joint=joint,
    )

"""From settings to a model: the one of this project, or a baseline that takes and gives the same."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from costl.config import Config
from costl.model import costl
from costl.model.adapter import AdapterModel
from costl.model.baselines import ClsModel
from costl.model.costl import CoSTL

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

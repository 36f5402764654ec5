"""Builds the model that the settings name: CoSTL, or a baseline with the same inputs and outputs."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from costl.config import Config
from costl.model.baselines.adapter import AdapterModel
from costl.model.baselines.cls import ClsModel
from costl.model.costl import CoSTL
from costl.model.heads import MomentHead, SaliencyHead
from costl.model.spatial import SpatialEncoder
from costl.model.temporal import Pyramid, TemporalLayer
from costl.pipeline.errors import CacheError, UsageError

if TYPE_CHECKING:
    from costl.pipeline.cache.reader import CacheReader

Model = CoSTL | ClsModel | AdapterModel
ADAPTER_ROUNDS = 4  # as published


def build_model(
    config: Config, *, encoder_width: int, word_width: int, patch_grid: tuple[int, int], joint: dict[str, Tensor]
) -> Model:
    """The untrained model that `model.kind` names, for features of these sizes.

    `joint` holds CLIP's map into the joint space of frames and sentences.
    """
    model = config.model
    temporal = config.temporal
    if model.kind == "costl":
        return build_costl(
            config, encoder_width=encoder_width, word_width=word_width, patch_grid=patch_grid, joint=joint
        )
    baseline: partial[ClsModel] | partial[AdapterModel]
    if model.kind == "cls":
        # Twice as many layers replace the spatial encoder and the pyramid, for about as many parameters.
        baseline = partial(ClsModel, layers=2 * temporal.layers)
    else:
        baseline = partial(AdapterModel, strides=tuple(temporal.strides), rounds=ADAPTER_ROUNDS)
    return baseline(
        encoder_width=encoder_width,
        word_width=word_width,
        joint=joint,
        width=model.width,
        heads=model.heads,
        dropout=model.dropout,
        input_dropout=model.input_dropout,
    )


def build_costl(
    config: Config, *, encoder_width: int, word_width: int, patch_grid: tuple[int, int], joint: dict[str, Tensor]
) -> CoSTL:
    """The untrained CoSTL model of `config` for features of these sizes; see `build_model`."""
    width, heads, dropout = config.model.width, config.model.heads, config.model.dropout
    temporal = config.temporal
    strides = tuple(temporal.strides)
    layer = {"width": width, "heads": heads, "kernel": temporal.kernel, "null_tokens": temporal.null_tokens}
    return CoSTL(
        spatial=SpatialEncoder(
            encoder_width=encoder_width,
            width=width,
            patch_grid=patch_grid,
            heads=heads,
            steps=config.spatial.steps,
            top_k=config.spatial.top_k,
            dropout=config.model.input_dropout,
        ),
        layers=[TemporalLayer(**layer, dropout=dropout) for _ in range(temporal.layers)],
        pyramid=Pyramid(width=width, strides=strides, kernel=temporal.kernel, top_down=temporal.top_down),
        moment_head=MomentHead(width=width, strides=strides),
        saliency_head=SaliencyHead(width=width),
        word_width=word_width,
        joint=joint,
        width=width,
        dropout=config.model.input_dropout,
        clip_prior=config.spatial.clip_prior,
    )


def build_model_for_cache(config: Config, features: CacheReader) -> Model:
    """The untrained model of these settings for the features of this cache.

    Raises CacheError for a cache without words, UsageError for a model that reads patches if the cache has none.
    """
    if config.patches and features.patch_grid == (0, 0):
        raise UsageError(_no_patches_message(config, features))
    joint = {f.name: torch.as_tensor(getattr(features.joint, f.name)) for f in fields(features.joint)}
    if not len(features.word_table()):
        raise CacheError(f"{features.path}: no annotated query. Add annotations and run costl extract again.")
    return build_model(
        config,
        encoder_width=joint["projection"].shape[0],
        word_width=features.word_table().counts()["channels"],
        patch_grid=features.patch_grid,
        joint=joint,
    )


def _no_patches_message(config: Config, features: CacheReader) -> str:
    setting = f"spatial.steps is {config.spatial.steps}"
    advice = "Leave spatial.steps out, or set it to 0."
    if config.model.kind == "adapter":
        setting = "model.kind is adapter"
        advice = "Set model.kind to cls, or to costl with spatial.steps at 0."
    return (
        f"{setting}, but the frames in {features.path} have no patches: they were imported, or extracted with "
        f"--tokens cls. {advice}"
    )

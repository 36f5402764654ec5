"""Builds the model that the settings name: CoSTL, or a baseline with the same inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from costl.config import DROPOUT, Config
from costl.model.baselines.adapter import AdapterModel
from costl.model.baselines.cls import ClsModel
from costl.model.costl import CoSTL
from costl.model.heads import MomentHead, SaliencyHead
from costl.model.spatial import SpatialEncoder
from costl.model.temporal import PositionReader, Pyramid, TemporalLayer
from costl.pipeline.errors import CacheError, UsageError

if TYPE_CHECKING:
    from costl.pipeline.cache.reader import CacheReader

Model = CoSTL | ClsModel | AdapterModel


def build_model(
    config: Config,
    *,
    encoder_width: int,
    word_width: int,
    patch_grid: tuple[int, int],
    joint_width: int,
    logit_scale: float,
) -> Model:
    """The untrained model that `model.kind` names, for features of these sizes.

    `logit_scale` is the encoder's: a similarity of frame and sentence is multiplied by it.
    """
    model = config.model
    dropout = DROPOUT if model.dropout is None else model.dropout
    temporal = config.temporal
    if model.kind != "costl":
        sizes: dict[str, Any] = vars(model) | {"encoder_width": encoder_width, "word_width": word_width, "dropout": dropout}
        del sizes["kind"]
        if model.kind == "adapter":
            return AdapterModel(**sizes, strides=temporal.strides)
        # Twice as many layers replace the spatial encoder and the pyramid, for about as many parameters.
        return ClsModel(**sizes, joint_width=joint_width, layers=2 * temporal.layers)
    spatial = SpatialEncoder(
        encoder_width=encoder_width,
        width=model.width,
        patch_grid=patch_grid,
        heads=model.heads,
        steps=config.spatial.steps,
        top_k=config.spatial.top_k,
        dropout=model.input_dropout,
    )
    layers = [
        TemporalLayer(
            width=model.width,
            heads=model.heads,
            kernel=temporal.kernel,
            null_tokens=temporal.null_tokens,
            dropout=dropout,
        )
        for _ in range(temporal.layers)
    ]
    return CoSTL(
        spatial=spatial,
        position_reader=_position_reader(config, spatial),
        layers=layers,
        pyramid=Pyramid(width=model.width, strides=temporal.strides, kernel=temporal.kernel),
        moment_head=MomentHead(width=model.width, strides=temporal.strides),
        saliency_head=SaliencyHead(width=model.width),
        word_width=word_width,
        joint_width=joint_width,
        logit_scale=logit_scale,
        width=model.width,
        dropout=model.input_dropout,
        clip_prior=config.spatial.clip_prior,
    )


def _position_reader(config: Config, spatial: SpatialEncoder) -> PositionReader | None:
    """None for an encoder without the fine step, whose heads have the positions."""
    if spatial.fine is None:
        return None
    width = spatial.head_positions_width
    return PositionReader(position_width=width, width=config.model.width, kernel=config.temporal.kernel)


def cache_sizes(config: Config, features: CacheReader) -> dict[str, Any]:
    """The arguments of `build_model` for the features of a cache.

    Raises CacheError for a cache without words, UsageError for a model that reads patches if the cache has none.
    """
    if config.patches and features.patch_grid == (0, 0):
        setting = f"spatial.steps is {config.spatial.steps}"
        advice = "Leave spatial.steps out, or set it to 0."
        if config.model.kind == "adapter":
            setting = "model.kind is adapter"
            advice = "Set model.kind to cls, or to costl with spatial.steps at 0."
        raise UsageError(
            f"{setting}, but the frames in {features.path} have no patches: they were imported, or extracted with "
            f"--tokens cls. {advice}"
        )
    if not len(features.word_table()):
        raise CacheError(f"{features.path}: no annotated query. Add annotations and run costl extract again.")
    return {
        "encoder_width": features.contents.token_width,
        "word_width": features.word_table().counts()["channels"],
        "patch_grid": features.patch_grid,
        "joint_width": features.joint.width,
        "logit_scale": features.joint.logit_scale,
    }

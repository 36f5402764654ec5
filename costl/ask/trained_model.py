"""Reads a trained model from a run or from an exported folder, without the cache that it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from costl.ask.hub import CLIP, CONFIG, MODEL
from costl.ask.model_folder import is_run, model_folder, read_export_config
from costl.config import Config
from costl.model.build import Model, build_model
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.training.checkpoint import (
    load_checkpoint,
    load_matching_weights,
    refuse_oversized_settings,
    with_current_keys,
)
from costl.training.run_folder import Run, open_cache, read_run

_TOKEN_NORM = "token_mlp.layers.0.weight"  # of a baseline


@dataclass(frozen=True)
class TrainedModel:
    """The `weights` of a trained model, its settings, and the features it needs.

    `fingerprint` says how the features were made. `source` names the CLIP that made them (model, weights). `name` is the
    folder of the model; error messages call it by this name.
    """

    name: str
    config: Config
    weights: Mapping[str, Tensor]
    fingerprint: Mapping[str, Any]
    patch_grid: tuple[int, int]
    source: Mapping[str, str]

    def model(self) -> Model:
        """Builds the model in evaluation mode. Raises CacheError if the weights do not fit the settings."""
        refuse_oversized_settings(self.config, self.weights, self.name)
        try:
            model = build_model(self.config, patch_grid=self.patch_grid, **_sizes(self.weights))
        except (RuntimeError, KeyError, IndexError) as error:
            raise CacheError(
                f"{self.name}: its weights do not fit its settings ({str(error).splitlines()[-1].strip()}). "
                "Export or train it again."
            ) from error
        load_matching_weights(model, self.weights, source=self.name)
        return model.eval()


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of the features that a model with these weights reads, as arguments of `build_model`."""
    sentence = weights.get("sentence_projection.1.weight")
    # Where a model does not have one of these tensors, it does not depend on the size.
    return {
        "encoder_width": weights["spatial.project.weight" if "spatial.project.weight" in weights else _TOKEN_NORM].shape[-1],
        "word_width": weights["word_projection.project.1.weight"].shape[1],
        "joint_width": 1 if sentence is None else sentence.shape[1],
        "logit_scale": float(weights.get("logit_scale", torch.ones(()))),
    }


def read_trained_model(model: Path | str | None = None) -> TrainedModel:
    """Reads a run (by default the newest in `runs/`), an exported folder, or hf://user/name.

    Raises UsageError if it is none of these, CacheError if it is damaged or incomplete.
    """
    folder = model_folder(model)
    return _from_run(read_run(folder)) if is_run(folder) else _from_export(folder)


def _from_run(run: Run) -> TrainedModel:
    weights, _ = load_checkpoint(run.folder, "best")
    # A run of an earlier version records the patch grid and CLIP only in its cache.
    recorded: Run | CacheReader = run if run.patch_grid else open_cache(run)
    rows, columns = recorded.patch_grid
    return TrainedModel(
        name=str(run.folder),
        config=run.resolved_config,
        weights=weights,
        fingerprint=run.fingerprint,
        patch_grid=(rows, columns),
        source=recorded.source,
    )


def _from_export(folder: Path) -> TrainedModel:
    content = read_export_config(folder / CONFIG)
    source = {name: value for name, value in content["clip"].items() if isinstance(value, str)}
    if source.get("weights") == CLIP:
        source["weights"] = str(folder / CLIP)
    return TrainedModel(
        name=str(folder),
        config=content["config"],
        weights=with_current_keys(_read_weights(folder / MODEL, content["sha256"])),
        fingerprint=content["fingerprint"],
        patch_grid=content["patch_grid"],
        source=source,
    )


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise CacheError(f"{path}: not the weights that {CONFIG} describes (sha256 differs). Fetch both again.")
        return safetensors.torch.load(content)
    except (OSError, SafetensorError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read ({error}). Export or fetch it again.") from error

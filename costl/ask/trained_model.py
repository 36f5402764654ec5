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

from costl.config import Config, load_config
from costl.model.build import Model, build_model
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.formats.strict_json import abbreviated, read_json
from costl.training.checkpoint import (
    load_checkpoint,
    load_matching_weights,
    refuse_oversized_settings,
    with_current_keys,
)
from costl.training.run_folder import Run, newest_run, open_cache, read_run

FORMAT = 1
MODEL, CONFIG, CARD, CLIP = "model.safetensors", "config.json", "README.md", "clip"
_JOINT_PREFIX = "joint_"


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

    @property
    def word_width(self) -> int:
        """Width of a word token. Raises CacheError if the weight that tells it is missing."""
        return self._size_of("word_projection.project.1.weight", 1)

    @property
    def encoder_width(self) -> int:
        """Width of a visual token. Raises CacheError if the weight that tells it is missing."""
        return self._size_of(f"{_JOINT_PREFIX}norm_weight", 0)

    def _size_of(self, name: str, axis: int) -> int:
        if name not in self.weights or self.weights[name].ndim <= axis:
            raise CacheError(f"{self.name}: no {name} among its weights. Export or train it again.")
        return int(self.weights[name].shape[axis])

    def model(self) -> Model:
        """Builds the model in evaluation mode. Raises CacheError if the weights do not fit the settings."""
        joint = {
            name.removeprefix(_JOINT_PREFIX): tensor
            for name, tensor in self.weights.items()
            if name.startswith(_JOINT_PREFIX)
        }
        joint["normed"] = torch.tensor(True)  # visual tokens of CLIP always go through its last norm
        refuse_oversized_settings(self.config, self.weights, self.name)
        try:
            model = build_model(
                self.config,
                encoder_width=self.encoder_width,
                word_width=self.word_width,
                patch_grid=self.patch_grid,
                joint=joint,
            )
        except (RuntimeError, KeyError) as error:
            raise CacheError(
                f"{self.name}: its weights do not fit its settings ({str(error).splitlines()[-1].strip()}). "
                "Export or train it again."
            ) from error
        load_matching_weights(model, self.weights, source=self.name)
        return model.eval()


def read_trained_model(folder: Path | None = None) -> TrainedModel:
    """Reads the folder of a run (by default the newest in `runs/`) or of an export.

    Raises UsageError if the folder is neither, CacheError if it is damaged or incomplete.
    """
    if folder is None:
        return _from_run(newest_run())
    if (folder / "run.json").is_file():
        return _from_run(read_run(folder))
    if (folder / CONFIG).is_file():
        return _from_export(folder)
    problem = "no such folder" if not folder.is_dir() else f"neither run.json nor {CONFIG} in it"
    raise UsageError(
        f"{folder}: {problem}. Give the folder of a run (costl train) or of an export (costl data export)."
    )


def _from_run(run: Run) -> TrainedModel:
    weights, _ = load_checkpoint(run.folder, "best")
    patch_grid = run.patch_grid
    source = run.source
    if not patch_grid:  # a run of an earlier version records both only in its cache
        features = open_cache(run)
        patch_grid = features.patch_grid
        source = features.source
    return TrainedModel(
        name=str(run.folder),
        config=run.resolved_config,
        weights=weights,
        fingerprint=run.fingerprint,
        patch_grid=(patch_grid[0], patch_grid[1]),
        source=source,
    )


def _from_export(folder: Path) -> TrainedModel:
    content = _read_config(folder / CONFIG)
    weights = with_current_keys(_read_weights(folder / MODEL, content["sha256"]))
    source = {name: value for name, value in content["clip"].items() if isinstance(value, str)}
    if source.get("weights") == CLIP:
        source["weights"] = str(folder / CLIP)
    rows, columns = content["patch_grid"]
    return TrainedModel(
        name=str(folder),
        config=content["config"],
        weights=weights,
        fingerprint=content["fingerprint"],
        patch_grid=(rows, columns),
        source=source,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """The content of config.json, checked; `config` in it is a Config."""
    try:
        content = read_json(path.read_text(encoding="utf-8"))
        if content.get("model_type") != "costl" or content.get("format") != FORMAT:
            raise CacheError(
                f"{path}: model type {content.get('model_type')!r} in format {content.get('format')!r}, expected 'costl' "
                f"in format {FORMAT}. Give a folder that costl data export of this version wrote."
            )
        content["patch_grid"] = [int(side) for side in content["patch_grid"]]
        content["fingerprint"] = dict(content["fingerprint"])
        content["clip"] = dict(content["clip"])
        content["sha256"] = str(content["sha256"])
        content["config"] = load_config(content["config"])
    except CacheError:
        raise
    except CostlError as error:
        raise CacheError(f"{path}: settings of another version ({error}) Export it again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CacheError(f"{path}: damaged ({abbreviated(error, 200)}). Export or fetch it again.") from error
    if len(content["patch_grid"]) != 2:
        raise CacheError(f"{path}: patch grid {content['patch_grid']}, expected rows and columns. Export it again.")
    return dict(content)


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise CacheError(f"{path}: not the weights that {CONFIG} describes (sha256 differs). Fetch both again.")
        return safetensors.torch.load(content)
    except (OSError, SafetensorError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read ({error}). Export or fetch it again.") from error

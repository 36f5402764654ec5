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
from costl.pipeline.cache.reader import CacheReader
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
                encoder_width=joint["norm_weight"].shape[0],
                word_width=self.weights["word_projection.project.1.weight"].shape[1],
                patch_grid=self.patch_grid,
                joint=joint,
            )
        except (RuntimeError, KeyError, IndexError) as error:
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
    content = _read_config(folder / CONFIG)
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


def _read_config(path: Path) -> dict[str, Any]:
    """The content of config.json, checked; `config` in it is a Config."""
    try:
        content = read_json(path.read_text(encoding="utf-8"))
        if content.get("model_type") != "costl" or content.get("format") != FORMAT:
            raise CacheError(
                f"{path}: model type {content.get('model_type')!r} in format {content.get('format')!r}, expected 'costl' "
                f"in format {FORMAT}. Give a folder that costl data export of this version wrote."
            )
        patch_grid = tuple(map(int, content["patch_grid"]))
        if len(patch_grid) != 2:
            raise CacheError(f"{path}: patch grid {patch_grid}, expected rows and columns. Export it again.")
        return {
            "patch_grid": patch_grid,
            "fingerprint": dict(content["fingerprint"]),
            "clip": dict(content["clip"]),
            "sha256": content["sha256"],
            "config": load_config(content["config"]),
        }
    except CacheError:
        raise
    except CostlError as error:
        raise CacheError(f"{path}: settings of another version ({error}) Export it again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CacheError(f"{path}: damaged ({abbreviated(error, 200)}). Export or fetch it again.") from error


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise CacheError(f"{path}: not the weights that {CONFIG} describes (sha256 differs). Fetch both again.")
        return safetensors.torch.load(content)
    except (OSError, SafetensorError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read ({error}). Export or fetch it again.") from error

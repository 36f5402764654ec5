"""A trained model by itself: everything that asking a video takes, from a run or from an exported folder."""

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
from costl.pipeline.formats.strict_json import read_json, shown
from costl.training.checkpoint import fit_weights, load_checkpoint, refuse_larger
from costl.training.run_folder import Run, newest_run, open_cache, read_run

FORMAT = 1
MODEL, CONFIG, CARD, CLIP = "model.safetensors", "config.json", "README.md", "clip"
_JOINT = "joint_"


@dataclass(frozen=True)
class Trained:
    """`weights` are the model's; `fingerprint` says how its features were made, `source` (model, weights) by which CLIP.

    `name` is what sentences call it: the folder it was read from.
    """

    name: str
    config: Config
    weights: Mapping[str, Tensor]
    fingerprint: Mapping[str, Any]
    patch_grid: tuple[int, int]
    source: Mapping[str, str]

    @property
    def word_width(self) -> int:
        """Width of a word token. Raises CacheError where the weights do not say it."""
        return int(self._sized("words.project.1.weight", 1))

    @property
    def clip_width(self) -> int:
        """Width of a visual token. Raises CacheError where the weights do not say it."""
        return int(self._sized(f"{_JOINT}norm_weight", 0))

    def _sized(self, name: str, axis: int) -> int:
        if name not in self.weights or self.weights[name].ndim <= axis:
            raise CacheError(f"{self.name}: no {name} among its weights. Export or train it again.")
        return self.weights[name].shape[axis]

    def model(self) -> Model:
        """The model, ready to be asked. Raises CacheError when its weights are those of another."""
        joint = {name.removeprefix(_JOINT): tensor for name, tensor in self.weights.items() if name.startswith(_JOINT)}
        joint["normed"] = torch.tensor(True)  # what CLIP makes of a video always goes through its last norm
        refuse_larger(self.config, self.weights, self.name)
        try:
            model = build_model(
                self.config,
                clip_width=self.clip_width,
                word_width=self.word_width,
                patch_grid=self.patch_grid,
                joint=joint,
            )
        except (RuntimeError, KeyError) as error:
            raise CacheError(
                f"{self.name}: its weights do not fit its settings ({str(error).splitlines()[-1].strip()}). "
                "Export or train it again."
            ) from error
        fit_weights(model, self.weights, of=self.name)
        return model.eval()


def read_trained(where: Path | None = None) -> Trained:
    """What a run (by default the newest in `runs/`) or an exported folder holds; no cache is needed.

    Raises UsageError where there is neither, CacheError for one that is damaged or lacks something.
    """
    if where is None:
        return _of_run(newest_run())
    if (where / "run.json").is_file():
        return _of_run(read_run(where))
    if (where / CONFIG).is_file():
        return _of_export(where)
    found = "no such folder" if not where.is_dir() else f"neither run.json nor {CONFIG} in it"
    raise UsageError(f"{where}: {found}. Give the folder of a run (costl train) or of an export (costl data export).")


def _of_run(run: Run) -> Trained:
    weights, _ = load_checkpoint(run.folder, "best")
    grid, source = run.patch_grid, run.source
    if not grid:  # a run of an earlier version says so only through its cache
        features = open_cache(run)
        grid, source = features.patch_grid, features.source
    return Trained(str(run.folder), run.settled, weights, run.fingerprint, (grid[0], grid[1]), source)


def _of_export(folder: Path) -> Trained:
    about = _read_config(folder / CONFIG)
    weights = _read_weights(folder / MODEL, about["sha256"])
    source = {name: value for name, value in about["clip"].items() if isinstance(value, str)}
    if source.get("weights") == CLIP:
        source["weights"] = str(folder / CLIP)
    return Trained(
        str(folder),
        about["config"],
        weights,
        about["fingerprint"],
        (about["patch_grid"][0], about["patch_grid"][1]),
        source,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Checked to be an export of ours; `config` comes as a Config."""
    try:
        about = read_json(path.read_text(encoding="utf-8"))
        if about.get("model_type") != "costl" or about.get("format") != FORMAT:
            raise CacheError(
                f"{path}: model type {about.get('model_type')!r} in format {about.get('format')!r}, expected 'costl' in "
                f"format {FORMAT}. Give a folder of costl data export, made by this version."
            )
        about["patch_grid"] = [int(side) for side in about["patch_grid"]]
        about["fingerprint"], about["clip"] = dict(about["fingerprint"]), dict(about["clip"])
        about["sha256"] = str(about["sha256"])
        about["config"] = load_config(about["config"])
    except CacheError:
        raise
    except CostlError as error:
        raise CacheError(f"{path}: settings of another version ({error}) Export it again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CacheError(f"{path}: damaged ({shown(error, 200)}). Export or fetch it again.") from error
    if len(about["patch_grid"]) != 2:
        raise CacheError(f"{path}: patch grid {about['patch_grid']}, expected rows and columns. Export it again.")
    return dict(about)


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise CacheError(f"{path}: not the weights that {CONFIG} speaks of (sha256 differs). Fetch both again.")
        return safetensors.torch.load(content)
    except (OSError, SafetensorError, ValueError) as error:
        raise CacheError(f"{path}: cannot be read ({error}). Export or fetch it again.") from error

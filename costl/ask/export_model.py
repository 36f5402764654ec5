"""Exports a trained model as a folder in the layout of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch

from costl.ask.hub import CARD, CLIP, CLIP_SUFFIXES, CONFIG, MODEL
from costl.ask.model_card import model_card
from costl.ask.model_folder import FORMAT
from costl.ask.trained_model import TrainedModel, read_trained_model
from costl.pipeline.errors import CacheError, CostlError, UsageError, next_step
from costl.pipeline.formats.files import publish, sync
from costl.pipeline.formats.strict_json import read_json
from costl.training.run_folder import newest_run, read_run


def export(run: Path | None, folder: Path, *, with_clip: bool = True) -> list[str]:
    """Writes model.safetensors, config.json and README.md of a run (by default the newest) to a new `folder`.

    config.json names CLIP weights that open_clip can fetch by their tag. If the weights are a folder on this machine,
    they are copied to `clip/`, unless `with_clip` is False. The same run gives the same bytes. The folder appears only
    when it is complete. Returns notes for the user. Raises UsageError if the folder exists and is not empty.
    """
    source = read_run(run) if run else newest_run()
    trained = read_trained_model(source.folder)
    trained.model()  # raises CacheError here if the weights do not fit, and not later when somebody loads the export
    tensors = {name: tensor.contiguous() for name, tensor in trained.weights.items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    clip_weights, notes = _clip_weights(trained, with_clip=with_clip)
    config = {
        "model_type": "costl",
        "library_name": "costl",
        "format": FORMAT,
        "config": trained.config.to_dict(),
        "clip": {"model": trained.source.get("model"), "weights": clip_weights},
        "fingerprint": dict(trained.fingerprint),
        "fps": trained.fingerprint.get("fps"),
        "patch_grid": list(trained.patch_grid),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    with _complete_folder(folder) as temporary:
        publish(temporary / MODEL, weights)
        publish(temporary / CONFIG, (json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
        publish(temporary / CARD, model_card(config, read_metrics(source.folder)).encode())
        if clip_weights == CLIP:
            for file in _clip_files(Path(trained.source["weights"])):
                publish(temporary / CLIP / file.name, file.read_bytes())
    return notes


def read_metrics(run: Path) -> dict[str, Mapping[str, Any]]:
    """The metrics that `evaluate` wrote into a run, by split. Empty if the run was not evaluated."""
    metrics: dict[str, Mapping[str, Any]] = {}
    for path in sorted(run.glob("eval-*/metrics.json")):
        try:
            metrics[path.parent.name.removeprefix("eval-")] = read_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CacheError(f"{path}: cannot be read ({error.strerror}). {next_step(error)}") from error
        except ValueError as error:
            raise CacheError(f"{path}: damaged ({error}). Run costl evaluate again.") from error
    return metrics


def _clip_weights(trained: TrainedModel, *, with_clip: bool) -> tuple[str | None, list[str]]:
    """The CLIP weights as config.json names them, without a path of this machine, and notes for the user."""
    weights = trained.source.get("weights", "")
    folder = Path(weights)
    if weights and not folder.is_absolute():
        return weights, []
    if with_clip and _clip_files(folder):
        return CLIP, [f"{folder} was copied to {CLIP}/. Check its licence before you share the export."]
    path = weights or "path unknown"
    return None, [f"The export does not contain the CLIP weights ({path}). Give them when you load it."]


def _clip_files(folder: Path) -> list[Path]:
    """Settings, tokenizer and weights in the folder of CLIP, with one copy of the weights; empty without safetensors."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix in CLIP_SUFFIXES and path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    of_open_clip = [path for path in weights if path.name == "open_clip_model.safetensors"]
    unused = set(weights) - set(of_open_clip or weights)
    return [path for path in files if path not in unused] if weights else []


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into. It is renamed to `folder` at the end, and deleted after an error."""
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: exists already and is not empty. Choose a new folder, or delete it.")
        shutil.rmtree(temporary, ignore_errors=True)
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise CostlError(f"{folder}: cannot be written ({error.strerror}). {next_step(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

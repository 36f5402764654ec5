"""A trained model for others: a folder as the Hugging Face Hub has them, with a card that says what it is."""

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

from costl.ask.model_card import model_card
from costl.ask.trained_model import CARD, CLIP, CONFIG, FORMAT, MODEL, Trained, read_trained
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.formats.files import publish, sync_folder
from costl.training.run_folder import newest_run, read_run

HUB = "hf://"
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


def export(run: Path | None, folder: Path, *, with_clip: bool = True) -> list[str]:
    """Writes model.safetensors, config.json and README.md of a run (by default the newest) to a new `folder`.

    CLIP weights that open_clip can fetch are named by their tag; a folder of one's own is copied to `clip/`, so that the
    export is complete, unless `with_clip` is False. The same run gives the same bytes; the folder appears whole or not
    at all. Gives what the person should know. Raises UsageError where something lies there already.
    """
    chosen = read_run(run) if run else newest_run()
    trained = read_trained(chosen.folder)
    trained.model()  # what does not fit is told here, not to whoever loads it
    tensors = {name: tensor.contiguous() for name, tensor in trained.weights.items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    clip, notes = _clip_reference(trained, with_clip=with_clip)
    about = _about(trained, clip) | {"sha256": hashlib.sha256(weights).hexdigest()}
    with _whole(folder) as aside:
        publish(aside / MODEL, weights)
        publish(aside / CONFIG, (json.dumps(about, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
        publish(aside / CARD, model_card(about, read_metrics(chosen.folder)).encode())
        if clip["weights"] == CLIP:
            for name in CLIP_FILES:
                publish(aside / CLIP / name, (Path(trained.source["weights"]) / name).read_bytes())
    return notes


def fetch(address: str) -> Path:
    """The folder of `hf://user/name` or `hf://user/name@revision`, brought here by huggingface_hub.

    JSON, Markdown and safetensors only. Raises UsageError when it cannot be had.
    """
    name, _, revision = address.removeprefix(HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(
            f"{address}: expected hf://user/name, such as hf://someone/moments, or hf://user/name@revision."
        )
    import huggingface_hub

    try:
        wanted = [MODEL, CONFIG, CARD, *(f"{CLIP}/{name}" for name in CLIP_FILES)]
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # the hub's own, those of its HTTP library and of the disk alike
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{address}: cannot be fetched ({reason}). Check the name and the connection.") from error


def read_metrics(run: Path) -> dict[str, Mapping[str, Any]]:
    """What `evaluate` wrote into the run, by split; empty where it was never called."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(run.glob("eval-*/metrics.json")):
        try:
            found[path.parent.name.removeprefix("eval-")] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CacheError(f"{path}: damaged ({error}). Run costl evaluate again.") from error
    return found


def _about(trained: Trained, clip: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "model_type": "costl",
        "library_name": "costl",
        "format": FORMAT,
        "config": trained.config.to_dict(),
        "clip": clip,
        "fingerprint": dict(trained.fingerprint),
        "fps": trained.fingerprint.get("fps"),
        "patch_grid": list(trained.patch_grid),
        "clip_width": trained.clip_width,
        "word_width": trained.word_width,
        "parameters": sum(tensor.numel() for tensor in trained.weights.values()),
    }


def _clip_reference(trained: Trained, *, with_clip: bool) -> tuple[dict[str, str | None], list[str]]:
    """How config.json names the CLIP, without a path of this machine, and what to say about it."""
    model, weights = trained.source.get("model"), trained.source.get("weights", "")
    folder = Path(weights)
    if weights and not folder.is_absolute():
        return {"model": model, "weights": weights}, []
    if with_clip and all((folder / name).is_file() for name in CLIP_FILES):
        return {"model": model, "weights": CLIP}, [
            f"{folder} was copied to {CLIP}/: mind its licence before you share it."
        ]
    missing = f"The CLIP weights ({weights or 'of unknown place'}) are not in it: whoever loads it has to give them."
    return {"model": model, "weights": None}, [missing]


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write into that gets its name when all of it is there."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder}: holds something already. Choose a new folder, or delete it.")
        shutil.rmtree(aside, ignore_errors=True)
        yield aside
        if folder.is_dir():
            folder.rmdir()
        aside.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CostlError(f"{folder}: cannot be written ({error}). Free space or choose another folder.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)

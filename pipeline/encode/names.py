"""Refuses models and weights that cannot exist before open_clip is loaded, which takes seconds."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from costl.pipeline.errors import UsageError, suggest

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def check_names(model: str, weights: str) -> None:
    """Raises UsageError for a model that open_clip does not know, and for a missing file of weights.

    Accepts any model for a folder of weights, which brings its own architecture. Does not know the tags of a model.
    """
    if weights_folder(weights):
        return
    models = model_names()
    if models and model.replace("/", "-") not in models:
        raise UsageError(f"no open_clip model is called {model!r}. {suggest(model, models)}")
    name = weights if is_file(weights) else weights.rpartition("=")[2]
    if not is_file(name) and (name.endswith(SUFFIXES) or os.sep in name):
        raise UsageError(f"{name}: no such weights file. Give a tag of {model}, a file or a folder.")


def model_names() -> list[str]:
    """The models of open_clip, each of which has a file of settings in its package.

    Where open_clip is loaded, also those that a program has added.
    """
    loaded = sys.modules.get("open_clip")
    if loaded:
        return list(loaded.list_models())
    package = find_spec("open_clip")
    folder = Path(package.origin if package and package.origin else "").parent / "model_configs"
    return sorted(path.stem for path in folder.glob("*.json"))


def weights_folder(weights: str) -> Path | None:
    """The folder that `weights` names, perhaps as local-dir:DIR; None if it names none."""
    path = os.path.expanduser(weights.removeprefix("local-dir:"))
    return Path(path) if os.path.isdir(path) else None


def is_file(name: str) -> bool:
    """Whether `name`, in which ~ is a home folder, is a file. Never raises: a name may be a tag, or too long for a file."""
    return os.path.isfile(os.path.expanduser(name))

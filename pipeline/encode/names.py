"""Refuses models and weights that cannot exist before open_clip is loaded, which takes seconds."""

from __future__ import annotations

import ast
import functools
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from costl.pipeline.encode.transformers_config import CONFIG, WEIGHT_FILES, read_config
from costl.pipeline.errors import UsageError, suggest
from costl.pipeline.options import MODEL, WEIGHTS

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def check_names(model: str, weights: str) -> None:
    """Raises UsageError for a model that open_clip does not know, a missing file, an incomplete folder, and an unknown tag.

    Accepts any model for a folder of weights, which brings its own architecture.
    """
    folder = weights_folder(weights)
    if folder:
        is_transformers_folder(folder)
        return
    check_model(model)
    name = weights if is_file(weights) else weights.rpartition("=")[2]
    if is_file(name):
        file = Path(os.path.expanduser(name))
        if file.name in WEIGHT_FILES and (file.parent / CONFIG).is_file():
            raise UsageError(f"{file}: belongs to a folder that transformers wrote. Give the folder as --weights {file.parent}.")
        return
    if name.endswith(SUFFIXES) or os.sep in name:
        raise UsageError(f"{name}: no such weights file. Give a tag of {model}, a file or a folder.")
    known = model_tags(model.replace("/", "-"))
    if known is not None and weights.lower().replace("-", "_") not in known:
        raise UsageError(no_such_tag(model, weights, known))


def check_model(model: str) -> None:
    """Raises UsageError for a model that open_clip does not know."""
    models = model_names()
    if models and model.replace("/", "-") not in models:
        hint = f"Give the folder as --weights {model}." if os.path.isdir(model) else suggest(model, models)
        raise UsageError(f"no open_clip model is called {model!r}. {hint}")


def model_names() -> list[str]:
    """The models of open_clip, each of which has a file of settings in its package.

    Where open_clip is loaded, also those that a program has added.
    """
    loaded = sys.modules.get("open_clip")
    if loaded:
        return list(loaded.list_models())
    return sorted(path.stem for path in (_open_clip_folder() / "model_configs").glob("*.json"))


def model_tags(model: str) -> list[str] | None:
    """The tags of the weights of a model, from a table in the source of open_clip, whose import takes seconds.

    Where open_clip is loaded, also those that a program has added. None if the table is not found.
    """
    loaded = sys.modules.get("open_clip")
    if loaded:
        return list(loaded.list_pretrained_tags_by_model(model))
    tags = _tags_in_source()
    return tags.get(model, []) if tags else None


def default_weights(model: str) -> str:
    """The tag of the weights of a model if none is chosen: that of own videos, the only one, or `openai`."""
    tags = model_tags(model.replace("/", "-")) or []
    if model == MODEL:
        return WEIGHTS
    return tags[0] if len(tags) == 1 else "openai"


def no_such_tag(model: str, tag: str, known: list[str]) -> str:
    """The error for a tag that a model does not have."""
    if not known:
        return f"open_clip has no weights of {model}. Give a file, or a folder that open_clip or transformers wrote."
    return f"{model} has no weights called {tag!r}. {suggest(tag, known)}"


@functools.cache
def _tags_in_source() -> dict[str, list[str]]:
    try:
        source = ast.parse((_open_clip_folder() / "pretrained.py").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return {}
    assigned = {ast.unparse(node.targets[0]): node.value for node in source.body if isinstance(node, ast.Assign)}
    models = assigned.get("_PRETRAINED")
    tags = {}
    for name, table in zip(models.keys, models.values, strict=True) if isinstance(models, ast.Dict) else ():
        table = assigned.get(table.id, table) if isinstance(table, ast.Name) else table
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and isinstance(table, ast.Call):
            of_model = {keyword.arg: ast.unparse(keyword.value) for keyword in table.keywords if keyword.arg}
            tags[name.value] = list(of_model)
            # open_clip repeats these under another name of the model.
            tags[f"{name.value}-quickgelu"] = [tag for tag, about in of_model.items() if "quick_gelu=True" in about]
    return tags


def _open_clip_folder() -> Path:
    package = find_spec("open_clip")
    return Path(package.origin if package and package.origin else "").parent


def weights_folder(weights: str) -> Path | None:
    """The folder that `weights` names, perhaps as local-dir:DIR; None if it names none."""
    path = os.path.expanduser(weights.removeprefix("local-dir:"))
    return Path(path) if os.path.isdir(path) else None


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder of weights is one of transformers; otherwise it is one of open_clip.

    Raises UsageError for a folder that is neither, or incomplete, or of an architecture that open_clip lacks.
    """
    config, weights = folder / OPEN_CLIP_CONFIG, folder / OPEN_CLIP_WEIGHTS
    if config.is_file() and weights.is_file():
        return False
    if (folder / CONFIG).is_file():
        read_config(folder)
        return True
    if config.is_file():
        raise UsageError(f"{folder}: no {weights.name} next to {config.name}. Put the weights there under this name.")
    found = [path.name for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    raise UsageError(
        f"{folder}: {f'{found[0]} without its config' if found else 'no weights'}. Expected a folder that open_clip "
        f"({config.name}) or transformers ({CONFIG}) has written."
    )


def is_file(name: str) -> bool:
    """Whether `name`, in which ~ is a home folder, is a file. Never raises: a name may be a tag, or too long for a file."""
    return os.path.isfile(os.path.expanduser(name))

"""The folder of a trained model: that of a run, of an export, or of one downloaded from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from costl.ask.hub import CONFIG, HUB, fetch
from costl.config import load_config
from costl.pipeline.errors import CacheError, CostlError, UsageError, next_step
from costl.pipeline.formats.files import as_path
from costl.pipeline.formats.strict_json import abbreviated, read_json
from costl.training.run_folder import has_run, newest_run, read_run

FORMAT = 1
ZERO_SHOT = "none"  # the model without training


def model_folder(model: Path | str | None) -> Path:
    """The folder of `model`, with its settings checked and without its weights loaded.

    None is the newest run in `runs/`. Downloads hf://user/name. Raises UsageError if the folder is neither a run nor an
    export, CacheError if its settings are damaged.
    """
    if model is None:
        return newest_run().folder
    folder = fetch(model) if isinstance(model, str) and model.startswith(HUB) else as_path("model", model)
    if is_run(folder):
        read_run(folder)
    elif (folder / CONFIG).is_file():
        read_export_config(folder / CONFIG)
    else:
        problem = "no such folder" if not folder.is_dir() else f"neither run.json nor {CONFIG} in it"
        raise UsageError(
            f"{folder}: {problem}. Give the folder of a run (costl train) or of an export (costl data export)."
        )
    return folder


def model_or_zero_shot(model: Path | str | None) -> Path | str:
    """The folder of `model` as `model_folder` finds it, or "none" for that model, and by default where there is no run."""
    if model == ZERO_SHOT or (model is None and not has_run()):
        return ZERO_SHOT
    return model_folder(model)


def is_run(folder: Path) -> bool:
    """Whether `costl train` wrote the folder."""
    return (folder / "run.json").is_file()


def read_export_config(path: Path) -> dict[str, Any]:
    """The content of the config.json of an export, checked; `config` in it is a Config. Raises CacheError."""
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
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}). {next_step(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CacheError(f"{path}: damaged ({abbreviated(error, 200)}). Export or fetch it again.") from error

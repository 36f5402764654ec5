"""Layers of settings that are files: YAML read strictly, found by path or by the bare name of a benchmark."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from costl.pipeline.formats.strict_yaml import read_yaml

CONFIGS = Path(str(files("costl.configs")))
BENCHMARKS = ("qvhighlights", "charades", "tacos", "tvsum", "youtube-highlights")
Layer = Path | Mapping[str, Any]


def benchmark_settings(name: str) -> Path:
    """The file with the settings of a benchmark, that came with this program."""
    return CONFIGS / f"{name}.yaml"


def stated_fps(layers: Iterable[Layer]) -> dict[str, float]:
    """How many clips a second each file asks features to have, for those of `layers` that say it."""
    found = {}
    for layer in layers:
        text = _read(layer, []) if isinstance(layer, Path) else {}
        extract = text.get("extract") if isinstance(text, Mapping) else None
        fps = extract.get("fps") if isinstance(extract, Mapping) else None
        if isinstance(fps, int | float) and 0 < fps <= sys.float_info.max:
            found[str(layer)] = float(fps)
    return found


def read_layer(path: Path, problems: list[str]) -> Any:
    """What a file says about training: all of it, or the `train` section where it is laid out as a data folder's costl.yaml.

    What is wrong with it is added to `problems`.
    """
    found = _read(path, problems)
    if not isinstance(found, Mapping) or "extract" not in found:
        return found
    for section in found:
        if section not in ("extract", "train"):
            problems.append(
                f"{path}: unknown section {section!r}, expected extract and train, with settings below these."
            )
    return found.get("train") or {}


def nearest(name: Any, known: Iterable[str]) -> str:
    """A hint for a name that is not known."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."


def _read(path: Path, problems: list[str]) -> Any:
    if str(path) in BENCHMARKS and not path.is_file():
        path = benchmark_settings(str(path))
    elif path.name == str(path) and not path.suffix and not path.is_file():
        problems.append(f"{path}: neither a file nor a benchmark. {nearest(path, BENCHMARKS)}")
        return {}
    try:
        return read_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error}).")
    except ValueError as error:
        problems.append(f"{path}: not valid YAML ({error}).")
    return {}

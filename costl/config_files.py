"""Settings files: strict YAML, given by a path or by the bare name of a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from costl.pipeline.errors import suggest
from costl.pipeline.formats.strict_yaml import read_yaml

CONFIGS = Path(str(files("costl.configs")))
BENCHMARKS = ("qvhighlights", "charades", "tacos", "tvsum", "youtube-highlights")
Layer = Path | Mapping[str, Any]


def benchmark_settings(name: str) -> Path:
    """The installed settings file of a benchmark."""
    return CONFIGS / f"{name}.yaml"


def stated_fps(layers: Iterable[Layer]) -> dict[str, float]:
    """The `extract.fps` (clips per second) of each file in `layers` that has one."""
    fps_by_file = {}
    for layer in layers:
        content = _read(layer, []) if isinstance(layer, Path) else {}
        extract = content.get("extract") if isinstance(content, Mapping) else None
        fps = extract.get("fps") if isinstance(extract, Mapping) else None
        if isinstance(fps, int | float) and 0 < fps <= sys.float_info.max:
            fps_by_file[str(layer)] = float(fps)
    return fps_by_file


def read_layer(path: Path, problems: list[str]) -> Any:
    """The training settings in a file: all of it, or the `train` section if it is the costl.yaml of a data folder.

    Adds everything that is wrong with it to `problems`.
    """
    content = _read(path, problems)
    if not isinstance(content, Mapping) or "extract" not in content:
        return content
    for section in content:
        if section not in ("extract", "train"):
            problems.append(
                f"{path}: unknown section {section!r}, expected extract and train, with settings below these."
            )
    return content.get("train") or {}


def _read(path: Path, problems: list[str]) -> Any:
    if str(path) in BENCHMARKS and not path.is_file():
        path = benchmark_settings(str(path))
    elif path.name == str(path) and not path.suffix and not path.is_file():
        problems.append(f"{path}: neither a file nor a benchmark. {suggest(str(path), BENCHMARKS)}")
        return {}
    try:
        return read_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error}).")
    except ValueError as error:
        problems.append(f"{path}: not valid YAML ({error}).")
    return {}

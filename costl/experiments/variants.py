"""Named variants of the model, each with a few settings changed: the standard list of an ablation, or the user's file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from costl.config import KINDS, Config, Loss, load_config
from costl.config_files import Layer, nearest
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.strict_yaml import read_yaml

FULL = "full"
_FILES = (".yaml", ".yml")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A name, its overrides (as `--set` takes them), and the resulting settings with seed 0."""

    name: str
    overrides: Overrides
    config: Config


def standard_variants(*, patches: int, learning_rate: float) -> dict[str, Overrides]:
    """Variants that remove or change one part of the method each, then the baselines; `patches` is the number in a frame.

    A baseline is trained with the `learning_rate` of the full model, which was not tuned for it, and as `-slower` with a
    quarter of it.
    """
    spatial = {
        "steps-0": ("spatial.steps=0",),
        "steps-1": ("spatial.steps=1",),
        "steps-2": ("spatial.steps=2",),
        "no-clip-prior": ("spatial.clip_prior=false",),
        "top-k-4": ("spatial.top_k=4",),
        "top-k-16": ("spatial.top_k=16",),
        "top-k-32": ("spatial.top_k=32",),
        "top-k-all": (f"spatial.top_k={max(1, patches)}",),
    }
    temporal = {
        "strides-1": ("temporal.strides=[1]",),
        "strides-1-2": ("temporal.strides=[1, 2]",),
        "strides-1-2-4-8": ("temporal.strides=[1, 2, 4, 8]",),
        "top-down": ("temporal.top_down=true",),
        "no-top-down": ("temporal.top_down=false",),
        "no-null-tokens": ("temporal.null_tokens=0",),
        "kernel-1": ("temporal.kernel=1",),
    }
    losses = {f"no-{weight.name.replace('_', '-')}": (f"loss.{weight.name}=0",) for weight in fields(Loss)}
    kinds = {kind: (f"model.kind={kind}",) for kind in KINDS[1:]}
    slower = {
        f"{kind}-slower": (*changes, f"train.learning_rate={learning_rate / 4}") for kind, changes in kinds.items()
    }
    return {FULL: (), **spatial, **temporal, **losses, **kinds, **slower}


def choose_variants(requested: Iterable[str], *, patches: int, learning_rate: float) -> dict[str, Overrides]:
    """The requested variants: names of standard ones, or YAML files with variants. Without any, the standard list.

    Names may be joined by commas. The full model always comes first: the others are compared with it. Raises UsageError
    for an unknown name (with the nearest one) and for a file that is not valid.
    """
    standard = standard_variants(patches=patches, learning_rate=learning_rate)
    names = [name.strip() for group in requested for name in group.split(",") if name.strip()]
    chosen: dict[str, Overrides] = {FULL: ()}
    for name in names or standard:
        if name.endswith(_FILES):
            chosen |= read_variants(Path(name))
        elif name in standard:
            chosen[name] = standard[name]
        else:
            raise UsageError(f"--variants {name}: no such variant. {nearest(name, standard)} A file ends in .yaml.")
    return chosen


def read_variants(path: Path) -> dict[str, Overrides]:
    """Variants from a YAML file: `name: {setting: value}`, as `small-k: {spatial.top_k: 2}`.

    Raises UsageError that names the file, the variant and the nearest valid setting.
    """
    try:
        variants = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).") from error
    except ValueError as error:
        raise UsageError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(variants, Mapping) or not variants:
        raise UsageError(f"{path}: found {variants!r}, expected variants such as 'small-k: {{spatial.top_k: 2}}'.")
    return {str(name): _overrides(f"{path}: {name}", str(name), changes) for name, changes in variants.items()}


def resolve(
    variants: Mapping[str, Overrides], layers: Sequence[Layer], overrides: Sequence[str]
) -> tuple[list[Variant], list[str]]:
    """The variants with their settings, the full model first. A variant with the settings of the full model is left out,
    with a note.

    Raises UsageError that names all variants with wrong settings at once.
    """
    resolved, notes, problems = list[Variant](), list[str](), list[str]()
    for name, changes in variants.items():
        try:
            config = load_config(*layers, overrides=[*overrides, *changes, "train.seed=0"])
        except UsageError as error:
            problems.append(f"variant {name}: {error}")
            continue
        if resolved and config == resolved[0].config:
            notes.append(f"{name}: the settings of the full model, left out.")
        else:
            resolved.append(Variant(name, changes, config))
    if problems:
        raise UsageError("\n".join(problems))
    return resolved, notes


def _overrides(where: str, name: str, changes: Any) -> Overrides:
    """The changes of one variant as overrides. They are validated here, so that an error names the file and the variant."""
    if not name or name[0] in ".-" or not set(name) <= _NAME:
        raise UsageError(f"{where}: is the name of a folder, expected small letters, digits, '-', '_' and '.'.")
    if name == FULL:
        raise UsageError(f"{where}: is reserved for the model without changes. Choose another name; --set changes every variant.")
    if not isinstance(changes, Mapping):
        raise UsageError(f"{where}: found {changes!r}, expected settings such as {{spatial.top_k: 2}}.")
    overrides = tuple(f"{setting}={json.dumps(value, default=str)}" for setting, value in changes.items())
    try:
        load_config(overrides=overrides)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return overrides

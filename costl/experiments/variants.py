"""Variants of the model by name, each a few settings changed: the standard list of an ablation, or a file of one's own."""

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
    """A name, what it changes (as `--set` takes it), and the settings that come of it, with seed 0."""

    name: str
    overrides: Overrides
    config: Config


def standard_variants(*, patches: int, learning_rate: float) -> dict[str, Overrides]:
    """Every part of the method taken away or changed by itself, then the baselines, for frames of so many patches.

    A baseline is trained at the full model's `learning_rate`, which was not chosen for it, and `-slower`, at a quarter of that.
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


def choose_variants(asked: Iterable[str], *, patches: int, learning_rate: float) -> dict[str, Overrides]:
    """The variants that `asked` names: standard ones, or files, each of which brings all of its own. None: the standard.

    Names may be joined by commas. The full model always comes first: the others are compared with it. Raises UsageError
    for a name that is not known and for a file that is none, each with what was meant.
    """
    standard = standard_variants(patches=patches, learning_rate=learning_rate)
    names = [name.strip() for group in asked for name in group.split(",") if name.strip()]
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
        found = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).") from error
    except ValueError as error:
        raise UsageError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(found, Mapping) or not found:
        raise UsageError(f"{path}: found {found!r}, expected variants such as 'small-k: {{spatial.top_k: 2}}'.")
    return {str(name): _overrides(f"{path}: {name}", str(name), changes) for name, changes in found.items()}


def resolve(
    variants: Mapping[str, Overrides], layers: Sequence[Layer], overrides: Sequence[str]
) -> tuple[list[Variant], list[str]]:
    """Each with its settings, the full model first, and a note for each that changes nothing beside it and is left out.

    Raises UsageError naming the variants whose settings cannot be, all of them at once.
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
    """The changes of one variant as overrides, tried by themselves so that a slip is told with its place."""
    if not name or name[0] in ".-" or not set(name) <= _NAME:
        raise UsageError(f"{where}: names a folder, expected small letters, digits, '-', '_' and '.'.")
    if name == FULL:
        raise UsageError(f"{where}: the name of the model as it is. Choose another; --set changes every variant.")
    if not isinstance(changes, Mapping):
        raise UsageError(f"{where}: found {changes!r}, expected settings such as {{spatial.top_k: 2}}.")
    overrides = tuple(f"{setting}={json.dumps(value, default=str)}" for setting, value in changes.items())
    try:
        load_config(overrides=overrides)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return overrides

"""Named variants of the model, each with a few settings changed: the standard list of an ablation, or the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from costl.config import KINDS, Loss
from costl.pipeline.errors import UsageError, suggest

FULL = "full"
Overrides = tuple[str, ...]  # as --set takes them


def standard_variants(*, patches: int, learning_rate: float) -> dict[str, Overrides]:
    """Variants that remove or change one part of the method each, then the baselines; `patches` is the number in a frame.

    A baseline is trained with the `learning_rate` of the full model, which was not tuned for it, and as `-slower` with a
    quarter of it.
    """
    parts = {
        "steps-0": ("spatial.steps=0",),
        "steps-1": ("spatial.steps=1",),
        "no-clip-prior": ("spatial.clip_prior=false",),
        "top-k-4": ("spatial.top_k=4",),
        "top-k-16": ("spatial.top_k=16",),
        "top-k-all": (f"spatial.top_k={max(1, patches)}",),
        "strides-1": ("temporal.strides=[1]",),
        "strides-1-2": ("temporal.strides=[1, 2]",),
        "no-null-tokens": ("temporal.null_tokens=0",),
        "kernel-1": ("temporal.kernel=1",),
    }
    losses = {f"no-{weight.name.replace('_', '-')}": (f"loss.{weight.name}=0",) for weight in fields(Loss)}
    kinds = {kind: (f"model.kind={kind}",) for kind in KINDS[1:]}
    slower = {f"{kind}-slower": (*changes, f"train.learning_rate={learning_rate / 4}") for kind, changes in kinds.items()}
    return {FULL: (), **parts, **losses, **kinds, **slower}


def choose_variants(requested: Iterable[str], *, patches: int, learning_rate: float) -> dict[str, Overrides]:
    """The requested variants, by default the standard list. The full model always comes first.

    An item of `requested` has the names of standard variants, joined by commas, or the settings of a variant, separated by
    spaces, such as "spatial.top_k=2 model.width=64". Raises UsageError with the nearest name for an unknown one.
    """
    standard = standard_variants(patches=patches, learning_rate=learning_rate)
    chosen: dict[str, Overrides] = {}
    for item in requested:
        if "=" in item:
            chosen[item] = tuple(item.split())
            continue
        for name in item.split(","):
            if name not in standard:
                raise UsageError(f"--variants {name}: no such variant. {suggest(name, list(standard))} Or give NAME=VALUE.")
            chosen[name] = standard[name]
    return {FULL: (), **(chosen or standard)}

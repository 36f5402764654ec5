"""Finds the moments of a video that a sentence describes.

import costl

answers = costl.load("runs/feats-20260131-120000").ask("holiday.mp4", ["a dog catches a ball"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

# `pipeline/` and `configs/` are installed inside this package. In a checkout they are next to it.
if not Path(__file__).with_name("pipeline").exists():
    __path__.append(str(Path(__file__).parents[1]))
__path__.append(str(Path(__file__).with_name("deprecated")))  # old names of modules, which warn

if TYPE_CHECKING:
    from costl.ask.asker import Asker


def load(
    model: Path | str | None = None,
    *,
    weights: str | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Asker:
    """Loads a trained model from a run, an export or hf://user/name; see `costl.ask.asker.load`."""
    from costl.ask.asker import load as load_asker  # imports torch, so only when it is called

    return load_asker(model, weights=weights, cache_dir=cache_dir, device=device, workers=workers)

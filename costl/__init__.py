"""Finds the moments of a video that a sentence describes.

import costl

answers = costl.load("runs/feats-20260131-120000").ask("holiday.mp4", ["a dog catches a ball"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

# `pipeline/` and `configs/` are installed inside this package. In a checkout they are beside it.
if not Path(__file__).with_name("pipeline").exists():
    __path__.append(str(Path(__file__).parents[1]))
__path__.append(str(Path(__file__).with_name("deprecated")))  # old names of modules, which warn

if TYPE_CHECKING:
    from costl.ask.asker import Asker


def load(
    where: Path | str | None = None,
    *,
    weights: str | None = None,
    cache_dir: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Asker:
    """A trained model to ask, see `costl.ask.asker.load`: of a run, of an export, or hf://user/name."""
    from costl.ask.asker import load as load_asker  # torch and all the rest: only when somebody asks

    return load_asker(where, weights=weights, cache_dir=cache_dir, device=device, workers=workers)

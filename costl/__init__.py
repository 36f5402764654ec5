"""Finds the moments of a video that a sentence describes.

import costl

answers = costl.load("runs/feats-20260131-120000").ask("holiday.mp4", ["a dog catches a ball"])
result = costl.library("Videos").search("a dog catches a ball")
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# `pipeline/` and `configs/` are installed inside this package. In a checkout they are next to it.
if not Path(__file__).with_name("pipeline").exists():
    __path__.append(str(Path(__file__).parents[1]))
__path__.append(str(Path(__file__).with_name("deprecated")))  # old names of modules, which warn

if TYPE_CHECKING:
    from costl.ask.answer import Answer, Moment, Saliency
    from costl.ask.asker import Asker, PatchAttention
    from costl.data.annotations import Prediction, Query
    from costl.metrics.compute import compute_metrics
    from costl.pipeline.cache.reader import CacheReader
    from costl.pipeline.errors import CacheError, CostlError, UsageError, VideoError
    from costl.pipeline.progress import ProgressCallback
    from costl.search.filters import Filters
    from costl.search.hits import Hit, SearchResult
    from costl.search.library import Library

__version__ = "0.2.0"
__all__ = [
    "Answer",
    "Asker",
    "CacheError",
    "CacheReader",
    "CostlError",
    "Filters",
    "Hit",
    "Library",
    "Moment",
    "PatchAttention",
    "Prediction",
    "Query",
    "Saliency",
    "SearchResult",
    "UsageError",
    "VideoError",
    "__version__",
    "compute_metrics",
    "library",
    "load",
]
_MODULES = {
    "costl.ask.answer": ("Answer", "Moment", "Saliency"),
    "costl.ask.asker": ("Asker", "PatchAttention"),
    "costl.data.annotations": ("Prediction", "Query"),
    "costl.metrics.compute": ("compute_metrics",),
    "costl.pipeline.cache.reader": ("CacheReader",),
    "costl.pipeline.errors": ("CacheError", "CostlError", "UsageError", "VideoError"),
    "costl.search.filters": ("Filters",),
    "costl.search.hits": ("Hit", "SearchResult"),
    "costl.search.library": ("Library",),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used: `import costl` itself loads neither torch nor h5py."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'costl' has no attribute {name!r}")


def load(
    model: Path | str | None = None,
    *,
    weights: Path | str | None = None,
    cache_dir: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> Asker:
    """Loads a trained model from a run, an export or hf://user/name; see `costl.ask.asker.load`."""
    from costl.ask.asker import load as load_asker  # imports torch, so only when it is called

    return load_asker(model, weights=weights, cache_dir=cache_dir, device=device, workers=workers)


def library(
    path: Path | str,
    *,
    run: Path | str | None = None,
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    cluster: str | None = None,
    update: bool = True,
    progress: ProgressCallback | None = None,
) -> Library:
    """Opens a folder of videos, or a cache of `costl extract`, for searching; see `costl.search.open_library.open_library`."""
    from costl.search.open_library import open_library

    return open_library(
        path,
        run=run,
        model=model,
        weights=weights,
        device=device,
        workers=workers,
        cluster=cluster,
        update=update,
        progress=progress,
    )

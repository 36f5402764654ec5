"""A run with its weights loaded and its cache open, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from costl.data.annotations import Prediction, Query
from costl.model.build import Model, build_model, cache_sizes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.progress import ProgressCallback
from costl.predict.predict import predict_split
from costl.training.checkpoint import load_checkpoint, load_matching_weights, refuse_oversized_settings
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.run_folder import Run, newest_run, open_cache, read_run

WEIGHTS = ("best", "last")


@dataclass(frozen=True)
class LoadedRun:
    """A run, its cache, and its model with loaded weights on a device."""

    run: Run
    features: CacheReader
    model: Model
    device: torch.device

    def predict(
        self, queries: Sequence[Query], progress: ProgressCallback | None = None, ranks: Ranks = SINGLE_PROCESS
    ) -> list[Prediction]:
        """The predictions of `predict_split` for these queries."""
        return predict_split(
            self.model,
            queries,
            self.features,
            config=self.run.resolved_config,
            device=self.device,
            progress=progress,
            ranks=ranks,
        )


def open_run(
    run: Path | None = None, *, cache: Path | None = None, weights: str = "best", device: str = "auto"
) -> LoadedRun:
    """Loads a run, by default the newest, with its "best" or "last" weights.

    Raises UsageError for a missing run or device, CacheError when the cache is not that of the run or a file is damaged.
    """
    chosen_run = read_run(run) if run else newest_run()
    features = open_cache(chosen_run, cache)
    torch_device = pick_device(device)
    model = load_model(chosen_run, features, weights=weights, device=torch_device)
    return LoadedRun(chosen_run, features, model, torch_device)


def load_model(run: Run, features: CacheReader, *, weights: str = "best", device: torch.device) -> Model:
    """The model of a run with its "best" or "last" weights. Raises CacheError when they do not fit its settings."""
    model_weights = _load_weights(run, weights)
    model = build_model(run.config, **cache_sizes(run.config, features)).to(device)
    load_matching_weights(model, model_weights, source=str(run.folder))
    return model


def _load_weights(run: Run, name: str) -> dict[str, Tensor]:
    """The weights to predict with. Raises CacheError for a damaged checkpoint, and for settings of a larger model."""
    if name not in WEIGHTS:
        raise UsageError(f"weights is {name!r}, expected one of {', '.join(WEIGHTS)}.")
    weights, meta = load_checkpoint(run.folder, name)
    refuse_oversized_settings(run.config, weights, str(run.folder))
    # The tensors of `last` are the weights before averaging; validation scores the EMA weights, which are in `meta`.
    model_weights = meta.get("average") if name == "last" else weights
    if not (isinstance(model_weights, dict) and all(isinstance(tensor, Tensor) for tensor in model_weights.values())):
        raise CacheError(f"{run.folder}: no average among its {name} weights. Use another checkpoint or train again.")
    return model_weights

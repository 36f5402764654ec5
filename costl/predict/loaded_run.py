"""A run with its weights loaded and its cache open, ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from costl.data.annotations import Prediction, Query
from costl.model.build import Model, build_for
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.progress import Tell
from costl.predict.predict import predict_split
from costl.training.checkpoint import fit_weights, load_checkpoint, refuse_larger
from costl.training.distributed import ALONE, Ranks
from costl.training.precision import pick_device
from costl.training.run_folder import Run, newest_run, open_cache, read_run

WEIGHTS = ("best", "last")


@dataclass(frozen=True)
class Ready:
    """A run with its weights loaded, beside its cache."""

    run: Run
    features: CacheReader
    model: Model
    device: torch.device

    def predict(self, queries: Sequence[Query], progress: Tell | None = None, ranks: Ranks = ALONE) -> list[Prediction]:
        """What `predict_split` gives for these queries."""
        return predict_split(
            self.model,
            queries,
            self.features,
            config=self.run.settled,
            device=self.device,
            progress=progress,
            ranks=ranks,
        )


def open_run(
    run: Path | None = None, *, cache: Path | None = None, weights: str = "best", device: str = "auto"
) -> Ready:
    """The run, by default the newest, with its "best" or "last" weights. Raises as `evaluate` does."""
    chosen = read_run(run) if run else newest_run()
    features = open_cache(chosen, cache)
    place = pick_device(device)
    return Ready(chosen, features, load_model(chosen, features, weights=weights, device=place), place)


def load_model(run: Run, features: CacheReader, *, weights: str = "best", device: torch.device) -> Model:
    """The model of a run with its "best" or "last" weights. Raises CacheError where these do not fit."""
    found = _weights_of(run, weights)
    model = build_for(run.config, features).to(device)
    fit_weights(model, found, of=str(run.folder))
    return model


def _weights_of(run: Run, which: str) -> dict[str, Tensor]:
    """What the model is to hold. Raises CacheError for a damaged checkpoint, and for settings of a larger model."""
    if which not in WEIGHTS:
        raise UsageError(f"weights is {which!r}, expected one of {', '.join(WEIGHTS)}.")
    weights, meta = load_checkpoint(run.folder, which)
    refuse_larger(run.config, weights, str(run.folder))
    # `last` holds all that resuming needs; validation has always scored the average.
    found = meta.get("average") if which == "last" else weights
    if not (isinstance(found, dict) and all(isinstance(one, Tensor) for one in found.values())):
        raise CacheError(f"{run.folder}: no average among its {which} weights. Use another checkpoint or train again.")
    return found

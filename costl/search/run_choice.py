"""Chooses the run that a search uses when none is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError
from costl.pipeline.formats.strict_json import read_json
from costl.training.run_folder import RUNS, read_run, runs_newest_first

if TYPE_CHECKING:
    from costl.search.second_tier import SecondTier

# What decides the features of an encoder. Its precision and the release of open_clip may differ.
_ENCODER_FIELDS = ("model", "weights", "preprocess")
# What reading and loading raise for files of any content.
_DAMAGE = (CostlError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


def run_for_library(features: CacheReader, *, device: str, max_bytes: int) -> tuple[SecondTier | None, str]:
    """The newest run in `runs/` that was trained with the encoder of the library and beat CLIP alone, as a second tier.

    None if there is no such run. The second value says why the newest run of all was passed over, and is empty where it was
    not. `features` are those of the library; `device` and `max_bytes` are those of `SecondTier`. A damaged run is passed over
    like any other, so this raises nothing.
    """
    message = ""
    for folder in runs_newest_first(RUNS):
        reason = _reason_against(folder, features.fingerprint)
        if not reason:
            from costl.search.second_tier import SecondTier  # imports torch

            try:
                return SecondTier(str(folder), features, device=device, max_bytes=max_bytes), message
            except _DAMAGE:
                reason = "it cannot be loaded"
        message = message or f"{folder} is not used: {reason}."
    return None, message


def _reason_against(folder: Path, fingerprint: Mapping[str, Any]) -> str:
    """Why a run cannot be used for features with this fingerprint; empty if it can."""
    try:
        run = read_run(folder)
        if any(run.fingerprint.get(field) != fingerprint.get(field) for field in _ENCODER_FIELDS):
            return "it was trained with another encoder"
        if not run.finished:
            return "its training has not finished"
        summary = read_json((folder / "summary.json").read_text(encoding="utf-8"))
        comparison = summary.get("zero_shot")  # a ZeroShotComparison
        if comparison is None:
            return "it was not compared with CLIP alone"
        interval = comparison["interval"]
        is_better = interval is not None and interval[0] > 0
    except _DAMAGE:
        return "its files are damaged"
    return "" if is_better else "it is not clearly better than CLIP alone"

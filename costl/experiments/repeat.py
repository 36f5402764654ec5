"""Trains the same settings with several seeds and reports mean and standard deviation.

<out>/repeat.json                       every number
<out>/[<domain>/]seed-<n>/              one run for each training; TVSum and YouTube Highlights have a model for each domain
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from costl.config import Config, load_config
from costl.config_files import Layer
from costl.data.queries import read_queries
from costl.experiments.scored_runs import score, train_unless_finished, with_stage_prefix
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import ProgressCallback
from costl.training.run_folder import RUNS

A_MODEL_PER_DOMAIN = ("tvsum", "youtube-highlights")
CHOSEN_ON_VAL, LAST, LEGACY = "chosen on val", "last epoch", "legacy: best epoch on test"

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Repeats:
    """`by_seed[selection][i]`: the headline numbers of seed i, in percent, for each way of selecting the checkpoint.

    If every domain has its own model, a number without the name of a domain is the mean over the domains.
    """

    folder: Path
    split: str
    seeds: tuple[int, ...]
    by_seed: Mapping[str, Sequence[Numbers]]
    notes: tuple[str, ...] = field(default=())
    exit_code = 0

    def mean(self, selection: str) -> Numbers:
        """The mean of each number over the seeds."""
        rows = self.by_seed[selection]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def deviation(self, selection: str) -> Numbers:
        """The sample standard deviation (divisor n - 1) of each number over the seeds, NaN for one seed."""
        rows = self.by_seed[selection]
        if len(self.seeds) < 2:
            return dict.fromkeys(rows[0], float("nan"))
        return {name: float(np.std([row[name] for row in rows], ddof=1)) for name in rows[0]}

    def lines(self) -> list[str]:
        """A row for each number, a column for each selection: mean and standard deviation."""
        selections = list(self.by_seed)
        names = list(self.by_seed[selections[0]][0])
        width = max(map(len, names)) + 2
        head = f"{self.split}, {len(self.seeds)} seeds".ljust(width)
        lines = [head + "".join(f"{selection:>{len(selection) + 4}}" for selection in selections)]
        means = {selection: self.mean(selection) for selection in selections}
        deviations = {selection: self.deviation(selection) for selection in selections}
        for name in names:
            cells = (_cell(means[s][name], deviations[s][name]).rjust(len(s) + 4) for s in selections)
            lines.append(name.ljust(width) + "".join(cells))
        return lines

    def data(self) -> dict[str, Any]:
        """Every number of every seed, mean and standard deviation, as JSON-compatible values."""
        by_selection = {
            selection: {
                "mean": self.mean(selection),
                "deviation": {name: value for name, value in self.deviation(selection).items() if not np.isnan(value)},
                "by_seed": list(self.by_seed[selection]),
            }
            for selection in self.by_seed
        }
        return {"split": self.split, "seeds": list(self.seeds), "ways": by_selection}

    def messages(self) -> list[str]:
        """The notes, and where the runs are."""
        return [*self.notes, f"Runs and every number: {self.folder}/"]


def repeat(
    cache: Path,
    *,
    seeds: int = 5,
    split: str = "test",
    config: Sequence[Layer] = (),
    overrides: Iterable[str] = (),
    out: Path | None = None,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> Repeats:
    """Trains with seeds 0, 1, ... `seeds` - 1 and scores each run on `split`. Finished runs in `out` are reused.

    The checkpoint is the one selected on `val`, or that of the last epoch without such a split (TVSum). With
    `train.select_on: test` there is a second column for the best epoch on test, labelled as legacy. TVSum and YouTube
    Highlights get a model for each domain, as in papers, unless `data.domain` names one. Raises UsageError for wrong
    settings or splits, and where `out` has runs with other settings.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}, expected at least 1.")
    features = CacheReader(cache)
    overrides = list(overrides)
    settings = load_config(features.settings, *config, overrides=overrides)
    folder = out or RUNS / f"{cache.stem}-repeat-{datetime.now():%Y%m%d-%H%M%S}"
    for name in dict.fromkeys(["train", *({settings.train.select_on} & set(features.splits)), split]):
        read_queries(features, name)  # errors are raised before the first training
    domains = _domains(features, settings)
    weights_by_selection = _selections(features, settings)
    by_seed: dict[str, list[Numbers]] = {selection: [] for selection in weights_by_selection}
    notes: dict[str, None] = {}
    for seed in range(seeds):
        scores: dict[str, list[Numbers]] = {selection: [] for selection in weights_by_selection}
        for domain in domains:
            run = folder / domain / f"seed-{seed}"
            changes = [*overrides, f"train.seed={seed}", *([f"data.domain={domain}"] if domain else [])]
            run_progress = with_stage_prefix(" ".join(filter(None, [domain, f"seed {seed}"])), progress)
            run_notes = train_unless_finished(
                run, features, config=config, overrides=changes, device=device, progress=run_progress
            )
            notes |= dict.fromkeys(run_notes)
            for selection, weights in weights_by_selection.items():
                scores[selection].append(score(run, split, weights=weights, device=device).brief)
        for selection, by_domain in scores.items():
            by_seed[selection].append(_over_domains(by_domain))
    result = Repeats(folder, split, tuple(range(seeds)), by_seed, tuple(notes))
    publish(folder / "repeat.json", (json.dumps(result.data(), indent=2) + "\n").encode())
    return result


def _domains(features: CacheReader, settings: Config) -> list[str]:
    if settings.data.benchmark not in A_MODEL_PER_DOMAIN or settings.data.domain:
        return [""]
    return sorted({query.domain for query in read_queries(features, "train")})


def _selections(features: CacheReader, settings: Config) -> dict[str, str]:
    """The weights to score by the name of their selection."""
    if settings.train.select_on == "test":
        return {LAST: "last", LEGACY: "best"}
    return {CHOSEN_ON_VAL: "best"} if "val" in features.splits else {LAST: "last"}


def _over_domains(scores: Sequence[Numbers]) -> Numbers:
    """The numbers of every domain, and the mean over domains of the numbers that all have."""
    all_numbers = {name: value for row in scores for name, value in row.items()}
    shared = [name for name in scores[0] if all(name in row for row in scores)]
    return all_numbers | {name: float(np.mean([row[name] for row in scores])) for name in shared}


def _cell(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" if np.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"

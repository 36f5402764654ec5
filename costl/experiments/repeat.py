"""The same settings with several seeds: mean and standard deviation, which one training cannot tell.

<out>/repeat.json                       every number
<out>/[<domain>/]seed-<n>/              one run each; TVSum and YouTube Highlights have a model for each domain
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from costl.config import Config, load_config
from costl.config_files import Layer
from costl.data.splits import read_queries
from costl.evaluate import evaluate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Tell
from costl.train import resume, train
from costl.training.run_folder import RUNS, read_run

A_MODEL_PER_DOMAIN = ("tvsum", "youtube-highlights")
CHOSEN_ON_VAL, LAST, LEGACY = "chosen on val", "last epoch", "legacy: best epoch on test"

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Repeats:
    """`by_seed[way][i]` has the headline numbers of seed i, in percent, for each way of choosing the checkpoint.

    Where every domain has a model of its own, a number without a domain's name is the mean over the domains.
    """

    folder: Path
    split: str
    seeds: tuple[int, ...]
    by_seed: Mapping[str, Sequence[Numbers]]
    notes: tuple[str, ...] = field(default=())
    exit_code = 0

    def mean(self, way: str) -> Numbers:
        """Of each number over the seeds."""
        return {name: float(np.mean([row[name] for row in self.by_seed[way]])) for name in self.by_seed[way][0]}

    def deviation(self, way: str) -> Numbers:
        """Standard deviation of each number over the seeds (of a sample: n - 1 below the line), NaN for one seed."""
        if len(self.seeds) < 2:
            return dict.fromkeys(self.by_seed[way][0], float("nan"))
        return {name: float(np.std([row[name] for row in self.by_seed[way]], ddof=1)) for name in self.by_seed[way][0]}

    def lines(self) -> list[str]:
        """A row for each number, a column for each way: mean and standard deviation."""
        ways = list(self.by_seed)
        names = list(self.by_seed[ways[0]][0])
        width = max(map(len, names)) + 2
        lines = [
            f"{self.split}, {len(self.seeds)} seeds".ljust(width) + "".join(f"{way:>{len(way) + 4}}" for way in ways)
        ]
        found = {way: (self.mean(way), self.deviation(way)) for way in ways}
        for name in names:
            cells = (_cell(found[way][0][name], found[way][1][name]).rjust(len(way) + 4) for way in ways)
            lines.append(name.ljust(width) + "".join(cells))
        return lines

    def data(self) -> dict[str, Any]:
        """Every number of every seed, mean and standard deviation, as plain values."""
        ways = {
            way: {
                "mean": self.mean(way),
                "deviation": {name: value for name, value in self.deviation(way).items() if not np.isnan(value)},
                "by_seed": list(self.by_seed[way]),
            }
            for way in self.by_seed
        }
        return {"split": self.split, "seeds": list(self.seeds), "ways": ways}

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
    progress: Tell | None = None,
) -> Repeats:
    """Trains with seeds 0, 1, ... `seeds` - 1 and scores each run on `split`; what an earlier call finished is kept.

    The checkpoint is the one chosen on `val`, or that of the last epoch where there is no such split (TVSum). With
    `train.select_on: test` the best epoch on test stands beside it, under its legacy name. TVSum and YouTube Highlights get a
    model for each domain, as in the literature, unless `data.domain` names one. Raises UsageError for what is wrong with the
    settings or the splits, and where `out` holds runs of other settings.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}, expected at least 1.")
    features = CacheReader(cache)
    overrides = list(overrides)
    settings = load_config(features.settings, *config, overrides=overrides)
    folder = out or RUNS / f"{cache.stem}-repeat-{datetime.now():%Y%m%d-%H%M%S}"
    for name in dict.fromkeys(["train", *({settings.train.select_on} & set(features.splits)), split]):
        read_queries(features, name)  # what is wrong with any of them is told before the first training
    domains, ways = _domains(features, settings), _ways(features, settings)
    by_seed: dict[str, list[Numbers]] = {way: [] for way in ways}
    notes: dict[str, None] = {}
    for seed in range(seeds):
        scores: dict[str, list[Numbers]] = {way: [] for way in ways}
        for domain in domains:
            run = folder / domain / f"seed-{seed}"
            changes = [*overrides, f"train.seed={seed}", *([f"data.domain={domain}"] if domain else [])]
            tell = _speaking_of(" ".join(filter(None, [domain, f"seed {seed}"])), progress)
            notes |= dict.fromkeys(trained(run, features, config=config, overrides=changes, device=device, tell=tell))
            for way, weights in ways.items():
                found = evaluate(run, split=split, weights=weights, out=run / f"eval-{split}-{weights}", device=device)
                scores[way].append(found.metrics["brief"])
        for way in ways:
            by_seed[way].append(_over_domains(scores[way]))
    result = Repeats(folder, split, tuple(range(seeds)), by_seed, tuple(notes))
    publish(folder / "repeat.json", (json.dumps(result.data(), indent=2) + "\n").encode())
    return result


def trained(
    folder: Path,
    features: CacheReader,
    *,
    config: Sequence[Layer] = (),
    overrides: Sequence[str],
    device: str,
    tell: Tell | None,
) -> tuple[str, ...]:
    """Makes the run in `folder`, or finishes it, or finds it finished; -> what training has to say.

    Raises UsageError where the run was made with other settings.
    """
    if not (folder / "run.json").exists():
        return train(features.path, config=config, overrides=overrides, out=folder, device=device, progress=tell).notes
    run = read_run(folder)
    if run.config != load_config(features.settings, *config, overrides=overrides):
        raise UsageError(f"{folder}: was trained with other settings. Delete it, or choose another folder with --out.")
    return () if run.finished else resume(folder, device=device, progress=tell).notes


def _domains(features: CacheReader, settings: Config) -> list[str]:
    if settings.data.benchmark not in A_MODEL_PER_DOMAIN or settings.data.domain:
        return [""]
    return sorted({query.domain for query in read_queries(features, "train")})


def _ways(features: CacheReader, settings: Config) -> dict[str, str]:
    """How the checkpoint is chosen -> which weights that are."""
    if settings.train.select_on == "test":
        return {LAST: "last", LEGACY: "best"}
    return {CHOSEN_ON_VAL: "best"} if "val" in features.splits else {LAST: "last"}


def _over_domains(scores: Sequence[Numbers]) -> Numbers:
    """Each domain's own number, and the mean over the domains of what they share."""
    every = {name: value for row in scores for name, value in row.items()}
    shared = [name for name in scores[0] if all(name in row for row in scores)]
    return every | {name: float(np.mean([row[name] for row in scores])) for name in shared}


def _speaking_of(name: str, tell: Tell | None) -> Tell | None:
    return tell and (lambda progress: tell(replace(progress, stage=f"{name}: {progress.stage}")))


def _cell(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" if np.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"

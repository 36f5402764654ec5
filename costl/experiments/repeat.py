"""Trains the same settings with several seeds and reports mean and standard deviation.

<out>/repeat.json                       every number
<out>/[<domain>/]seed-<n>/              one run for each training; TVSum and YouTube Highlights have a model for each domain
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from costl.config import Config, load_config
from costl.config_files import Layer
from costl.data.queries import read_queries
from costl.experiments.scored_runs import train_and_score, with_stage_prefix
from costl.experiments.tables import Numbers, statistics
from costl.metrics.paper_table import WITH_DOMAINS, mean_cell, paper_table
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.files import publish, refuse_overwrite
from costl.pipeline.formats.table import table
from costl.pipeline.progress import ProgressCallback
from costl.training.run_folder import RUNS

CHOSEN_ON_VAL = "chosen on val"
LAST = "last epoch"
LEGACY = "legacy: best epoch on test"


@dataclass(frozen=True)
class Repeats:
    """`by_seed[selection][i]`: the headline numbers of seed i, in percent, for each way of selecting the checkpoint.

    If every domain has its own model, a number without the name of a domain is the mean over the domains.
    """

    folder: Path
    split: str
    by_seed: Mapping[str, Sequence[Numbers]]
    notes: Sequence[str] = ()
    benchmark: str = "qvhighlights"
    exit_code = 0

    def lines(self) -> list[str]:
        """A row for each number, a column for each selection: mean and standard deviation."""
        columns = list(self.by_seed.values())
        rows = [
            [name, *(mean_cell([numbers[name] for numbers in column], digits=2) for column in columns)]
            for name in columns[0][0]
        ]
        return table([f"{self.split}, seeds: {len(columns[0])}", *self.by_seed], rows)

    def paper_table(self, style: str) -> list[str]:
        """A row for each selection, in Markdown ("md") or "latex"."""
        return paper_table(self.by_seed, benchmark=self.benchmark, style=style)

    def data(self) -> dict[str, Any]:
        """Every number of every seed, and their statistics."""
        ways = {name: {**statistics(by_seed), "by_seed": by_seed} for name, by_seed in self.by_seed.items()}
        return {"split": self.split, "ways": ways}

    def messages(self) -> list[str]:
        """The notes, and the folder of the runs."""
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
    settings or splits, and for runs in `out` with other settings.
    """
    features = CacheReader(cache)
    overrides = list(overrides)
    settings = load_config(features.settings, *config, overrides=overrides)
    folder = out or RUNS / f"{cache.stem}-repeat-{datetime.now():%Y%m%d-%H%M%S}"
    refuse_overwrite(folder / "repeat.json", is_ours=lambda content: b'\n  "ways": {' in content)
    for name in {"train", split, *({settings.train.select_on} & set(features.splits))}:
        read_queries(features, name)  # errors are raised before the first training
    by_seed: dict[str, list[Numbers]] = {}
    # The second selection scores the runs that the first one trained.
    domains, left_out = trained_domains(features, settings, split)
    notes = [left_out] if left_out else []
    for selection, weights in selections(features, settings).items():
        by_seed[selection] = []
        for seed in range(seeds):
            by_domain = []
            for domain in domains:
                scores, run_notes = train_and_score(
                    folder / domain / f"seed-{seed}",
                    cache,
                    [split],
                    weights=weights,
                    config=config,
                    overrides=[*overrides, f"train.seed={seed}", *([f"data.domain={domain}"] if domain else [])],
                    device=device,
                    progress=with_stage_prefix(f"{domain} seed {seed}".strip(), progress),
                )
                by_domain.append(scores[split])
                notes += run_notes
            by_seed[selection].append(_mean_over_domains(by_domain))
    result = Repeats(folder, split, by_seed, list(dict.fromkeys(notes)), settings.data.benchmark)
    publish(folder / "repeat.json", (json.dumps(result.data(), indent=2) + "\n").encode())
    return result


def trained_domains(features: CacheReader, settings: Config, split: str) -> tuple[list[str], str]:
    """The domains that get a model of their own, and a note about those that cannot; [""] for one model of everything.

    A domain needs a video with features in train, in `split` and in the split that selects the checkpoint. Raises
    UsageError if no domain has them.
    """
    if settings.data.benchmark not in WITH_DOMAINS or settings.data.domain:
        return [""], ""
    names = ["train", split, *({settings.train.select_on} & set(features.splits))]
    vids = set(features.video_ids)
    queries = {name: read_queries(features, name) for name in names}
    every = sorted({query.domain for query in queries["train"] + queries[split]})
    with_features = [{query.domain for query in rows if query.vid in vids} for rows in queries.values()]
    trained = [domain for domain in every if all(domain in present for present in with_features)]
    listed = ", ".join(dict.fromkeys(names))
    if not trained:
        raise UsageError(f"{features.path}: no domain has a video with features in each of {listed}. Add their videos.")
    left_out = [domain for domain in every if domain not in trained]
    note = f"Left out, without a video with features in one of {listed}: {first_few(left_out, last=' and ')}."
    return trained, note if left_out else ""


def selections(features: CacheReader, settings: Config) -> dict[str, str]:
    """The weights to score ("best" or "last") by the name of their selection."""
    if settings.train.select_on == "test":
        return {LAST: "last", LEGACY: "best"}
    return {CHOSEN_ON_VAL: "best"} if "val" in features.splits else {LAST: "last"}


def _mean_over_domains(scores: Sequence[Numbers]) -> Numbers:
    """The numbers of every domain, and the mean over domains of the numbers that all have."""
    all_numbers = {name: value for row in scores for name, value in row.items()}
    shared = [name for name in scores[0] if all(name in row for row in scores)]
    return all_numbers | {name: fmean([row[name] for row in scores]) for name in shared}

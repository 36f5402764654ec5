"""A run and a split -> predictions -> metrics, files and a picture; training validates by the same path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.data.annotations import Prediction, Query
from costl.data.batch import RATED_CLIP_S
from costl.data.splits import data_notes, read_queries
from costl.metrics.compute import benchmark_rules, interval_iou
from costl.metrics.output import how_scored, metrics_table, write_metrics, write_parquet, write_predictions
from costl.metrics.score_files import score
from costl.pipeline.progress import Tell
from costl.plots.run import draw_predictions
from costl.predict.loaded_run import Ready, open_run
from costl.report.shots import best_moments
from costl.training.distributed import ALONE, Ranks
from costl.training.run_folder import legacy_label

DRAWN = 8


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: `metrics` as `compute_metrics` lays them out, with `intervals` (none of it where the
    split has no labels), where the files are, what to know."""

    run: Path
    split: str
    folder: Path
    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The tables of the metrics."""
        return metrics_table(self.metrics).split("\n") if self.metrics else []

    def data(self) -> dict[str, Any]:
        """The metrics."""
        return dict(self.metrics)

    def messages(self) -> list[str]:
        """How it was scored, the notes, and where the files are."""
        scored = [how_scored(self.metrics)] if self.metrics else []
        files = f"Predictions{', metrics' if self.metrics else ''} and a picture: {self.folder}/"
        return [*scored, *self.notes, files]


def evaluate(
    run: Path | None = None,
    *,
    split: str = "test",
    cache: Path | None = None,
    official: bool = False,
    weights: str = "best",
    benchmark: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Tell | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Scores a run (by default the newest in `runs/`) on a split of its cache, on the domain that it was trained on.

    `weights`: "best" as chosen in training, or "last", the averaged weights of the last epoch. `benchmark` says whose
    rules to score by, by default the run's `data.benchmark`; `official` reproduces its published evaluator. Writes
    metrics.json (with bootstrap intervals), predictions.jsonl (the submission format), predictions.parquet and
    predictions.png to `out`, by default `eval-<split>/` in the run. A split without labels is predicted all the same;
    then there are no metrics. Raises UsageError for a missing run, split or domain and for a split whose videos all lack
    features, CacheError where the cache is not the one of the run or a file is damaged: in each case before any file is
    written, and an earlier evaluation in the folder stays as it is. Of several `ranks` each answers its share of the
    queries, once; the first scores and writes, and all get what it found.
    """
    with ranks.together():
        ready = open_run(run, cache=cache, weights=weights, device=ranks.device(device))
        queries = read_queries(ready.features, split, domain=ready.run.config.data.domain)
        benchmark_rules(benchmark or ready.run.config.data.benchmark)
    ranks.same({"run": str(ready.run.folder.resolve()), "queries": str([query.qid for query in queries])})
    predictions = ready.predict(queries, progress if ranks.first else None, ranks)
    found = None
    with ranks.together():
        if ranks.first:
            found = _written(ready, split, queries, predictions, official=official, benchmark=benchmark, out=out)
    return ranks.tell(found)


def _written(
    ready: Ready,
    split: str,
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    *,
    official: bool,
    benchmark: str | None,
    out: Path | None,
) -> Evaluation:
    """Scores the predictions and writes all files of an evaluation."""
    config, folder = ready.run.config, out or ready.run.folder / f"eval-{split}"
    benchmark = benchmark or config.data.benchmark
    rows = _a_row_each(queries, predictions)
    metrics: dict[str, Any] = {}
    notes, legacy = data_notes(split, queries, ready.features), legacy_label(config)
    if any(query.windows or query.clip_ids for query in queries):
        metrics = {"legacy": legacy} if legacy else {}
        metrics |= score(rows, queries, benchmark=benchmark, official=official, clip_s=RATED_CLIP_S)
        write_metrics(folder / "metrics.json", metrics)
        notes += [legacy] if legacy else []
    else:
        notes.append(f"{split}: no labels, so that there are predictions and no metrics.")
        (folder / "metrics.json").unlink(missing_ok=True)  # of an earlier evaluation: they would pass for these
    write_predictions(folder / "predictions.jsonl", rows)
    write_parquet(folder / "predictions.parquet", rows)
    examples = choose_examples(queries, predictions)
    draw_predictions(
        folder / "predictions.png",
        examples,
        title=f"{split}, {ready.run.folder.name}",
        pictures=best_moments(examples, ready.features),
    )
    return Evaluation(ready.run.folder, split, folder, metrics, tuple(notes))


def _a_row_each(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[Prediction]:
    """In the order of the queries; one whose video has no features is answered with empty lists, which count 0."""
    by_qid = {prediction.qid: prediction for prediction in predictions}
    return [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]


def choose_examples(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[tuple[Query, Prediction]]:
    """Up to eight queries across all outcomes: ranked by the overlap of the first moment, evenly picked."""
    by_qid = {prediction.qid: prediction for prediction in predictions}
    answered = [(query, by_qid[query.qid]) for query in queries if query.qid in by_qid]
    ranked = sorted(answered, key=lambda pair: -_overlap(*pair))
    picked = np.unique(np.linspace(0, len(ranked) - 1, min(DRAWN, len(ranked))).round().astype(int))
    return [ranked[i] for i in picked]


def _overlap(query: Query, prediction: Prediction) -> float:
    if not (query.windows and prediction.windows):
        return 0.0
    return float(interval_iou(np.array(prediction.windows[0][:2]), np.array(query.windows)).max())

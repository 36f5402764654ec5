"""Evaluates a run on a split: predictions, metrics, the files of both and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costl.data import queries as splits
from costl.data.annotations import RATED_CLIP_S, Prediction, Query
from costl.data.wrong_videos import wrong_video_pairs
from costl.deprecated import moved_object
from costl.metrics.compute import benchmark_rules
from costl.metrics.corpus import CorpusTruth
from costl.metrics.corpus_files import truth_of_queries, truth_of_split
from costl.metrics.moments import interval_iou
from costl.metrics.output import (
    is_own_parquet,
    metrics_row,
    metrics_tables,
    scoring_message,
    write_metrics,
    write_parquet,
    write_predictions,
)
from costl.metrics.rejection import rejection_metrics
from costl.metrics.score_files import score
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import refuse_overwrite
from costl.pipeline.progress import ProgressCallback
from costl.plots.predictions import draw_predictions
from costl.predict.loaded_run import LoadedRun, open_run
from costl.report.pictures import best_moment_frames
from costl.training.distributed import SINGLE_PROCESS, Ranks
from costl.training.run_folder import legacy_label

MAX_EXAMPLES = 8
PREDICTIONS = "predictions.jsonl"
PARQUET = "predictions.parquet"
WRONG_VIDEO = "wrong video"  # the group of absent pairs in the table of rejection


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation: its metrics, the folder of its files and its notes.

    `metrics` are laid out as by `compute_metrics`, with `intervals`; empty for a split without labels. Where queries have
    windows, `rejection` has the result of `rejection_metrics` for pairs of a sentence with a wrong video.
    """

    run: Path
    split: str
    folder: Path
    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The tables of the metrics."""
        return metrics_tables(self.metrics) if self.metrics else []

    def paper_table(self, style: str) -> list[str]:
        """One row, in Markdown ("md") or "latex"."""
        return metrics_row(self.run.resolve().name, self.metrics, style) if self.metrics else []

    def data(self) -> dict[str, Any]:
        """The metrics."""
        return dict(self.metrics)

    def messages(self) -> list[str]:
        """The rules of the scoring, the notes, and the folder of the files."""
        scored = [scoring_message(self.metrics)] if self.metrics else []
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
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Evaluation:
    """Scores a run (by default the newest in `runs/`) on a split of its cache, on the domain that it was trained on.

    `weights` are "best", as chosen in training, or "last", the averaged weights of the last epoch. Scores by the rules of
    `benchmark`, by default the run's `data.benchmark`; `official` reproduces its published evaluator. Writes metrics.json
    (with bootstrap intervals), predictions.jsonl (the submission format), predictions.parquet and predictions.png to
    `out`, by default `eval-<split>/` in the run. For a split without labels, writes predictions but no metrics.

    Raises UsageError for files in `out` that are not of an earlier evaluation (unless `overwrite`), for a missing run,
    split or domain and for a split whose videos all lack features, CacheError when the cache is not that of the run or a
    file is damaged. Then no file is written, and an earlier evaluation in the folder
    stays as it is. Of several `ranks`, each predicts a part of the queries; the main process scores and writes, and all
    return the same evaluation.
    """
    with ranks.all_or_none():
        if out is not None:
            _refuse_other_files(out, overwrite=overwrite)
        loaded = open_run(run, cache=cache, weights=weights, device=ranks.device(device))
        queries = splits.read_queries(loaded.features, split, domain=loaded.run.config.data.domain)
        benchmark_rules(benchmark or loaded.run.config.data.benchmark)  # refuses an unknown name before predicting
        absent_pairs = _absent_pairs(loaded, split, queries)
    ranks.require_same({"run": str(loaded.run.folder.resolve()), "queries": str([query.qid for query in queries])})
    report_progress = progress if ranks.is_main else None
    predictions = loaded.predict(queries, report_progress, ranks)
    # Those of the main process: another machine may not have the file next to the videos.
    absent = loaded.predict(ranks.broadcast(absent_pairs), report_progress, ranks)
    evaluation = None
    with ranks.all_or_none():
        if ranks.is_main:
            evaluation = _score_and_write(
                loaded, split, queries, predictions, absent, official=official, benchmark=benchmark, out=out
            )
    return ranks.broadcast(evaluation)


def _absent_pairs(loaded: LoadedRun, split: str, queries: Sequence[Query]) -> list[Query]:
    """Sentences of queries with a window, with videos in which they are not true; none for a split without windows."""
    vids = set(loaded.features.video_ids)
    present = [query for query in queries if query.windows and query.vid in vids]
    true_videos: dict[str, set[str]] = {query.query: set() for query in present}
    for query in queries:
        true_videos.setdefault(query.query, set()).add(query.vid)
    for row in _known_truth(loaded, split, queries):
        true_videos.setdefault(row.sentence, set()).update(moment.video for moment in row.moments)
    return wrong_video_pairs(present, true_videos=true_videos)


def _known_truth(loaded: LoadedRun, split: str, queries: Sequence[Query]) -> list[CorpusTruth]:
    try:
        return truth_of_split(split, queries, videos=loaded.features.videos)
    except UsageError:  # that corpus.jsonl is about other videos or splits, and only --corpus cannot do without it
        return truth_of_queries(queries)


def _rejection(
    queries: Sequence[Query], predictions: Sequence[Prediction], absent: Sequence[Prediction]
) -> dict[str, Any]:
    """`rejection` of the pairs with a wrong video, by the score of the best moment; empty without such a pair."""
    labelled = {query.qid for query in queries if query.windows}
    present = [prediction for prediction in predictions if prediction.qid in labelled]
    best_scores = [[max(window[2] for window in p.windows) for p in pairs if p.windows] for pairs in (present, absent)]
    metrics = rejection_metrics(*best_scores)
    return {"rejection": {WRONG_VIDEO: metrics}} if metrics else {}


def _refuse_other_files(folder: Path, *, overwrite: bool) -> None:
    """Raises UsageError for a file that an evaluation would replace, unless a predictions.parquet shows that it is its own."""
    marker = folder / PARQUET
    refuse_overwrite(marker, is_ours=is_own_parquet, overwrite=overwrite)
    for name in ("metrics.json", PREDICTIONS, "predictions.png"):
        refuse_overwrite(folder / name, is_ours=lambda _: marker.exists(), overwrite=overwrite)


def __getattr__(name: str) -> Any:
    new_names = {
        "read_queries": "costl.data.queries:read_queries",
    }
    return moved_object(__name__, name, new_names)


def _score_and_write(
    loaded: LoadedRun,
    split: str,
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    absent: Sequence[Prediction],
    *,
    official: bool,
    benchmark: str | None,
    out: Path | None,
) -> Evaluation:
    """Scores the predictions and writes all files of an evaluation."""
    folder = out or loaded.run.folder / f"eval-{split}"
    benchmark = benchmark or loaded.run.config.data.benchmark
    rows = _one_row_per_query(queries, predictions)
    write_parquet(folder / PARQUET, rows)  # first: it shows that the other files are an evaluation's
    metrics: dict[str, Any] = {}
    notes = splits.data_notes(split, queries, loaded.features)
    legacy = legacy_label(loaded.run.config)
    if any(query.windows or query.clip_ids for query in queries):
        metrics = {"legacy": legacy} if legacy else {}
        metrics |= score(rows, queries, benchmark=benchmark, official=official, clip_s=RATED_CLIP_S)
        metrics |= _rejection(queries, predictions, absent)
        write_metrics(folder / "metrics.json", metrics)
        notes += [legacy] if legacy else []
    else:
        notes.append(f"{split}: no labels, so that there are predictions and no metrics.")
        (folder / "metrics.json").unlink(missing_ok=True)  # an earlier evaluation's would be taken for these
    write_predictions(folder / PREDICTIONS, rows)
    examples = choose_examples(queries, predictions)
    draw_predictions(
        folder / "predictions.png",
        examples,
        title=f"{split}, {loaded.run.folder.name}",
        pictures=best_moment_frames(examples, loaded.features),
    )
    return Evaluation(loaded.run.folder, split, folder, metrics, tuple(notes))


def _one_row_per_query(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions in the order of the queries; empty lists, which score 0, for a query whose video has no features."""
    by_qid = {prediction.qid: prediction for prediction in predictions}
    return [by_qid.get(query.qid, Prediction(query.qid, query.query, query.vid)) for query in queries]


def choose_examples(queries: Sequence[Query], predictions: Sequence[Prediction]) -> list[tuple[Query, Prediction]]:
    """Up to MAX_EXAMPLES queries of all outcomes: evenly spaced in the ranking by the IoU of the first moment."""
    by_qid = {prediction.qid: prediction for prediction in predictions}
    answered = [(query, by_qid[query.qid]) for query in queries if query.qid in by_qid]
    ranked = sorted(answered, key=lambda pair: -_first_moment_iou(*pair))
    indices = np.unique(np.linspace(0, len(ranked) - 1, min(MAX_EXAMPLES, len(ranked))).round().astype(int))
    return [ranked[i] for i in indices]


def _first_moment_iou(query: Query, prediction: Prediction) -> float:
    if not (query.windows and prediction.windows):
        return 0.0
    return float(interval_iou(np.array(prediction.windows[0][:2]), np.array(query.windows)).max())

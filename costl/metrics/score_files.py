"""Scores a prediction file against an annotation file, without a cache and without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costl.data.annotations import Prediction, Query, parse_jsonl, parse_rows
from costl.metrics.bootstrap import bootstrap_intervals
from costl.metrics.checks import refuse_unknown_qids
from costl.metrics.compute import benchmark_of, measure
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.annotations import cut_note
from costl.pipeline.formats.strict_json import as_jsonl, json_lines, read_text

LABEL_FIELDS = ("relevant_windows", "relevant_clip_ids", "saliency_scores", "rated_windows", "duration", "domain")
PREDICTED_FIELDS = ("pred_relevant_windows", "pred_saliency_scores")


def score_files(
    predictions: Path, truth: Path, *, benchmark: str | None = None, official: bool = False
) -> dict[str, Any]:
    """Scores a submission file against an annotation file; -> the result of `score`.

    Without `benchmark` the labels decide: youtube-highlights where they have rated_windows, tvsum where they have domains
    and no relevant_windows, otherwise qvhighlights. Raises UsageError for what `read_truth`, `read_predictions` and
    `compute_metrics` refuse.
    """
    queries = read_truth(truth)
    rows = read_predictions(predictions, queries, truth=truth)
    scores = score(rows, queries, benchmark=benchmark or benchmark_of(queries), official=official)
    notes = [*scores.get("notes", ()), *cut_note(str(truth), queries)]
    return scores | ({"notes": notes} if notes else {})


def score(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, benchmark: str, official: bool, clip_s: float = 2.0
) -> dict[str, Any]:
    """The result of `compute_metrics` with two more keys.

    `scored`: benchmark, mode, number of queries and length of a clip. `intervals`: for each headline number its 95 %
    bootstrap interval [low, high] in percent, over queries. Queries with domains (TVSum, YouTube Highlights: one a video)
    are resampled within each domain where every domain has two or more.
    """
    metrics, values = measure(predictions, queries, benchmark=benchmark, official=official, clip_s=clip_s)
    intervals = bootstrap_intervals(values, groups=[query.domain for query in queries])
    scored = {"benchmark": benchmark, "official": official, "queries": len(queries), "clip_s": clip_s}
    return {**metrics, "scored": scored, "intervals": {name: list(pair) for name, pair in intervals.items()}}


def read_truth(path: Path) -> list[Query]:
    """The queries of an annotation file.

    Raises UsageError for a file that is missing or empty, for a bad row (with file and line), and for a file of
    predictions.
    """
    text = as_jsonl(read_text(path))
    predicted = _fields(text, PREDICTED_FIELDS)
    if predicted:
        raise UsageError(
            f"{path}: a file of predictions (it has {', '.join(predicted)}), expected annotations. "
            "Pass it as --predictions and the annotations as --truth."
        )
    queries = parse_jsonl(text, str(path))
    if not queries:
        raise UsageError(f"{path}: no row in it, expected one JSON object a line with qid, query, vid and duration.")
    return queries


def read_predictions(path: Path, queries: Sequence[Query], *, truth: Path) -> list[Prediction]:
    """The predictions of a submission file for the queries of the file `truth`.

    Raises UsageError for a file that is missing or empty, for a bad row or a qid that occurs twice (with file and line),
    for a file of annotations, for a row without either list of predictions, for a row whose qid is not among the queries,
    and for a query without a row: a query without an answer has a row with empty lists.
    """
    text = as_jsonl(read_text(path))
    labels = _fields(text, LABEL_FIELDS)
    if labels and not _fields(text, PREDICTED_FIELDS):
        raise UsageError(
            f"{path}: a file of annotations (it has {', '.join(labels)}), expected predictions with "
            f"{' and '.join(PREDICTED_FIELDS)}."
        )
    predictions = parse_rows(text, str(path), _prediction)
    refuse_unknown_qids(predictions, queries, source=str(path), truth=str(truth))
    known = {query.qid for query in queries}
    missing = sorted(known - {prediction.qid for prediction in predictions}, key=str)
    if missing:
        raise UsageError(
            f"{path}: no row for {first_few(map(repr, missing))}, {len(missing)} of the {len(known)} queries of {truth}. Give "
            "every query a row. A query without an answer has empty lists and counts 0."
        )
    return predictions


def _fields(text: str, names: Sequence[str]) -> list[str]:
    """Which of the names are fields of the first row. A row that is not a JSON object has none; the parser refuses it."""
    _, line = next(json_lines(text), (0, ""))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(row, dict) and name in row]


def _prediction(row: Mapping[str, Any]) -> Prediction:
    """An empty list means that there is no answer. A row with neither list is probably in another format."""
    prediction = Prediction.from_row(row)
    if not set(row) & set(PREDICTED_FIELDS):
        raise UsageError(f"query {prediction.qid!r} has neither {' nor '.join(PREDICTED_FIELDS)}")
    return prediction

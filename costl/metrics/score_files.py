"""Scores a prediction file against an annotation file, without a cache and without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costl.data.annotations import Prediction, Query, parse_jsonl, parse_predictions
from costl.metrics.bootstrap import bootstrap_intervals
from costl.metrics.compute import benchmark_of, measure
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.strict_json import json_lines

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
    return score(rows, queries, benchmark=benchmark or benchmark_of(queries), official=official)


def score(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, benchmark: str, official: bool, clip_s: float = 2.0
) -> dict[str, Any]:
    """The result of `compute_metrics` with two more keys.

    `scored`: benchmark, mode, number of queries and length of a clip. `intervals`: for each headline number its 95 %
    bootstrap interval [low, high] in percent, over queries; for tvsum and youtube-highlights over videos, resampled
    within each domain where every domain has two or more.
    """
    metrics, values = measure(predictions, queries, benchmark=benchmark, official=official, clip_s=clip_s)
    intervals = bootstrap_intervals(values, groups=resampling_groups(queries, benchmark))
    scored = {"benchmark": benchmark, "official": official, "queries": len(queries), "clip_s": clip_s}
    return {**metrics, "scored": scored, "intervals": {name: list(pair) for name, pair in intervals.items()}}


def resampling_groups(queries: Sequence[Query], benchmark: str) -> list[str]:
    """The group of each query [b] whose size a bootstrap resample preserves: the domain, for a benchmark whose number is
    a mean over domains; otherwise no groups."""
    return [query.domain for query in queries] if benchmark in ("tvsum", "youtube-highlights") else []


def read_truth(path: Path) -> list[Query]:
    """The queries of an annotation file.

    Raises UsageError for a file that is missing or empty, for a bad row (with file and line), and for a file of
    predictions.
    """
    text = _read(path)
    first_row = _first_row(text)
    if set(first_row) & set(PREDICTED_FIELDS):
        raise UsageError(
            f"{path}: a file of predictions (it has {_fields_in(first_row, PREDICTED_FIELDS)}), expected annotations. "
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
    text = _read(path)
    first_row = _first_row(text)
    fields = set(first_row)
    if fields & set(LABEL_FIELDS) and not fields & set(PREDICTED_FIELDS):
        raise UsageError(
            f"{path}: a file of annotations (it has {_fields_in(first_row, LABEL_FIELDS)}), expected predictions with "
            f"{' and '.join(PREDICTED_FIELDS)}."
        )
    predictions = parse_predictions(text, str(path))
    if not predictions:
        raise UsageError(f"{path}: no prediction in it, expected one JSON object a line for each query of {truth}.")
    _refuse_rows_without_prediction(text, predictions, path)
    known = {query.qid for query in queries}
    extra = [prediction.qid for prediction in predictions if prediction.qid not in known]
    if extra:
        raise UsageError(
            f"{path}: no query {first_few(map(repr, extra))} in {truth} ({len(known)} queries). Is it of another split?"
        )
    missing = sorted(known - {prediction.qid for prediction in predictions}, key=str)
    if missing:
        raise UsageError(
            f"{path}: no row for {first_few(map(repr, missing))}, {len(missing)} of the {len(known)} queries of {truth}. Give "
            "every query a row. A query without an answer has empty lists and counts 0."
        )
    return predictions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path}: cannot be read ({reason}), expected a JSONL file.") from error


def _first_row(text: str) -> dict[str, Any]:
    """The first row if it is a JSON object, otherwise an empty one: the parser reports what is wrong with it."""
    _, line = next(json_lines(text), (0, ""))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _fields_in(row: dict[str, Any], fields: Sequence[str]) -> str:
    return ", ".join(name for name in fields if name in row)


def _refuse_rows_without_prediction(text: str, predictions: Sequence[Prediction], path: Path) -> None:
    """An empty list means that there is no answer. A row with neither list is probably in another format."""
    for (number, line), prediction in zip(json_lines(text), predictions, strict=True):
        if not (prediction.windows or prediction.saliency or set(json.loads(line)) & set(PREDICTED_FIELDS)):
            raise UsageError(
                f"{path}:{number}: query {prediction.qid!r} has neither {' nor '.join(PREDICTED_FIELDS)}."
            )

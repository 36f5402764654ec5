"""Anyone's prediction file against a truth file: read, checked, scored; no cache and no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from costl.data.annotations import Prediction, Query, parse_jsonl, parse_predictions
from costl.metrics.bootstrap import bootstrap_intervals
from costl.metrics.checks import listed
from costl.metrics.compute import benchmark_of, measure
from costl.pipeline.errors import UsageError

TRUTH_ONLY = ("relevant_windows", "relevant_clip_ids", "saliency_scores", "rated_windows", "duration", "domain")
PREDICTED = ("pred_relevant_windows", "pred_saliency_scores")


def score_files(
    predictions: Path, truth: Path, *, benchmark: str | None = None, official: bool = False
) -> dict[str, Any]:
    """Scores a submission file against an annotation file; -> what `score` gives.

    Without `benchmark` the truth decides: youtube-highlights where it has rated_windows, tvsum where it has domains and
    no relevant_windows, otherwise qvhighlights. Raises UsageError for what `read_truth`, `read_predictions` and
    `compute_metrics` refuse.
    """
    queries = read_truth(truth)
    rows = read_predictions(predictions, queries, truth=truth)
    return score(rows, queries, benchmark=benchmark or benchmark_of(queries), official=official)


def score(
    predictions: Sequence[Prediction], queries: Sequence[Query], *, benchmark: str, official: bool, clip_s: float = 2.0
) -> dict[str, Any]:
    """`compute_metrics`; `scored`, how that was done; and `intervals`, the 95 % bootstrap interval [low, high] of each
    headline number over queries; over videos for tvsum and youtube-highlights, within each domain where all have two."""
    metrics, values = measure(predictions, queries, benchmark=benchmark, official=official, clip_s=clip_s)
    intervals = bootstrap_intervals(values, groups=resampled_within(queries, benchmark))
    how = {"benchmark": benchmark, "official": official, "queries": len(queries), "clip_s": clip_s}
    return {**metrics, "scored": how, "intervals": {name: list(pair) for name, pair in intervals.items()}}


def resampled_within(queries: Sequence[Query], benchmark: str) -> list[str]:
    """The groups [q] whose size a resample keeps: the domains of a benchmark whose number is a mean over domains."""
    return [query.domain for query in queries] if benchmark in ("tvsum", "youtube-highlights") else []


def read_truth(path: Path) -> list[Query]:
    """The queries of an annotation file. Raises UsageError: no such file, a bad row (file and line), no row, a file of
    predictions instead."""
    text = _read(path)
    if set(_first_row(text)) & set(PREDICTED):
        raise UsageError(
            f"{path}: a file of predictions (it has {_names(_first_row(text), PREDICTED)}), expected annotations. "
            "Give it as --predictions and the annotations as --truth."
        )
    queries = parse_jsonl(text, str(path))
    if not queries:
        raise UsageError(f"{path}: no row in it, expected one JSON object a line with qid, query, vid and duration.")
    return queries


def read_predictions(path: Path, queries: Sequence[Query], *, truth: Path) -> list[Prediction]:
    """The predictions in a submission file.

    Raises UsageError: no such file, a bad row or the second of a qid (file and line), no row, annotations instead of
    predictions, a row with neither list of predictions, a row for no query, a query without a row (an unanswered one has
    empty lists).
    """
    text = _read(path)
    row = _first_row(text)
    if row and not set(row) & set(PREDICTED) and set(row) & set(TRUTH_ONLY):
        raise UsageError(
            f"{path}: a file of annotations (it has {_names(row, TRUTH_ONLY)}), expected predictions with "
            f"{' and '.join(PREDICTED)}."
        )
    predictions = parse_predictions(text, str(path))
    if not predictions:
        raise UsageError(f"{path}: no prediction in it, expected one JSON object a line for each query of {truth}.")
    _refuse_rows_without_prediction(text, predictions, path)
    known = {query.qid for query in queries}
    extra = [prediction.qid for prediction in predictions if prediction.qid not in known]
    if extra:
        raise UsageError(f"{path}: no query {listed(extra)} in {truth} ({len(known)} queries). Is it of another split?")
    missing = sorted(known - {prediction.qid for prediction in predictions}, key=str)
    if missing:
        raise UsageError(
            f"{path}: no row for {listed(missing)}, {len(missing)} of the {len(known)} queries of {truth}. Give every query a "
            "row; one without an answer has empty lists, and counts 0."
        )
    return predictions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path}: cannot be read ({reason}), expected a JSONL file.") from error


def _first_row(text: str) -> dict[str, Any]:
    """The first row where it is an object; what is wrong with it otherwise is for the parser to say."""
    line = next((line for line in text.removeprefix("\ufeff").split("\n") if line.strip()), "")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _names(row: dict[str, Any], known: Sequence[str]) -> str:
    return ", ".join(name for name in known if name in row)


def _refuse_rows_without_prediction(text: str, predictions: Sequence[Prediction], path: Path) -> None:
    """An empty list says that there is no answer; a row that names neither list was meant otherwise."""
    lines = ((n, line) for n, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1) if line.strip())
    for (number, line), prediction in zip(lines, predictions, strict=True):
        if not (prediction.windows or prediction.saliency or set(json.loads(line)) & set(PREDICTED)):
            raise UsageError(f"{path}:{number}: query {prediction.qid!r} has neither {' nor '.join(PREDICTED)}.")

"""Metrics and predictions for people and other programs: tables for a terminal, JSON, JSONL and Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costl.data.annotations import Prediction
from costl.metrics.corpus import IOU_THRESHOLDS, NDCG_IOU, NDCG_RANK, RANKS
from costl.metrics.moments import headline_numbers
from costl.metrics.paper_table import paper_table
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.table import table


@dataclass(frozen=True)
class Scores:
    """The metrics of a prediction file, as `score_files` returns them, and the name of the method."""

    metrics: Mapping[str, Any]
    name: str = "predictions"
    exit_code = 0

    def lines(self) -> list[str]:
        """The tables."""
        return metrics_tables(self.metrics)

    def paper_table(self, style: str) -> list[str]:
        """One row, in Markdown ("md") or "latex"."""
        return metrics_row(self.name, self.metrics, style)

    def data(self) -> dict[str, Any]:
        """The metrics."""
        return dict(self.metrics)

    def messages(self) -> list[str]:
        """How they were scored."""
        return [scoring_message(self.metrics)]


@dataclass(frozen=True)
class CorpusScores:
    """The metrics of a search, as `score_corpus` returns them, and further messages."""

    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """The tables."""
        return [*_corpus_tables(self.metrics), *_rejection_table(self.metrics)][:-1]

    def data(self) -> dict[str, Any]:
        """The metrics."""
        return dict(self.metrics)

    def messages(self) -> list[str]:
        """How many sentences were scored, and the notes."""
        scored = self.metrics["scored"]
        return [f"{scored['present']} sentences that are true in some video, {scored['absent']} absent ones.", *self.notes]


def scoring_message(metrics: Mapping[str, Any]) -> str:
    """One sentence: the number of queries, the benchmark whose rules were used, and the length of a clip."""
    scored = metrics["scored"]
    published = " by its published evaluator" if scored["official"] else ""
    return f"{scored['queries']} queries, scored as {scored['benchmark']}{published}, clips of {scored['clip_s']:g} s."


def metrics_tables(metrics: Mapping[str, Any]) -> list[str]:
    """The lines of the tables of what `compute_metrics` or `score` returned, and its notes.

    Percentages have two decimals; the 95 % interval of each headline number is there if there are `intervals`. The label
    `legacy` stands above the tables.
    """
    label = [metrics["legacy"], ""] if "legacy" in metrics else []
    tables = [*_moment_table(metrics), *_highlight_table(metrics), *_ranking_table(metrics), *_rejection_table(metrics)]
    notes = [f"note: {note}" for note in metrics.get("notes", ())]
    lines = [*label, *tables, *notes]
    return lines if notes else lines[:-1]


def metrics_row(name: str, metrics: Mapping[str, Any], style: str) -> list[str]:
    """The table for a paper with one row, for what `score` returned. A row selected on test is named as legacy."""
    label = f"{name} ({metrics['legacy']})" if "legacy" in metrics else name
    return paper_table({label: [metrics["brief"]]}, benchmark=metrics["scored"]["benchmark"], style=style)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """The result of `compute_metrics` or `score` as JSON. Raises CostlError when it cannot be written."""
    publish(path, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """The submission format of QVHighlights: one JSON object a line. Raises CostlError when it cannot be written."""
    lines = [json.dumps(prediction.to_row(), allow_nan=False) + "\n" for prediction in predictions]
    publish(path, "".join(lines).encode())


def write_parquet(path: Path, predictions: Sequence[Prediction]) -> None:
    """One row a query: qid (int64; text if any qid is text), query, vid, moments (list of start_s, end_s, score in
    seconds), saliency (list, one score a clip). Raises CostlError when it cannot be written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    integer_qids = all(isinstance(prediction.qid, int) for prediction in predictions)
    moment = pa.struct([(name, pa.float64()) for name in ("start_s", "end_s", "score")])
    schema = pa.schema(
        {
            "qid": pa.int64() if integer_qids else pa.string(),
            "query": pa.string(),
            "vid": pa.string(),
            "moments": pa.list_(moment),
            "saliency": pa.list_(pa.float64()),
        }
    )
    rows = [
        {
            "qid": p.qid if integer_qids else str(p.qid),
            "query": p.query,
            "vid": p.vid,
            "moments": [dict(zip(("start_s", "end_s", "score"), window, strict=True)) for window in p.windows],
            "saliency": p.saliency,
        }
        for p in predictions
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    publish(path, sink.getvalue())


def is_own_parquet(content: bytes) -> bool:
    """Whether the beginning and the end of a file are those of `write_parquet`."""
    return content.startswith(b"PAR1") and all(name in content for name in (b"start_s", b"end_s", b"saliency"))


def _moment_table(metrics: Mapping[str, Any]) -> list[str]:
    """A row for each number, a column for each length of window; the interval is that of all windows."""
    lengths = [name for name in ("full", "long", "middle", "short") if name in metrics]
    numbers = {name: headline_numbers(metrics[name]) for name in lengths}
    rows = [
        [row, _number(value), _interval(metrics, f"MR-full-{row}"), *(_number(numbers[n].get(row)) for n in lengths[1:])]
        for row, value in numbers.get("full", {}).items()
    ]
    return _table(["moments", "full", "95 %", *lengths[1:]], rows)


def _highlight_table(metrics: Mapping[str, Any]) -> list[str]:
    """QVHighlights: a row for each least rating of a positive clip."""
    rows = [
        [
            f">= {name[7:]}",
            _number(metrics[name]["HL-mAP"]),
            _interval(metrics, f"{name}-mAP"),
            _number(metrics[name]["HL-Hit1"]),
            _interval(metrics, f"{name}-Hit1"),
        ]
        for name in metrics
        if name.startswith("HL-min-")
    ]
    return _table(["highlights", "mAP", "95 %", "HIT@1", "95 %"], rows)


def _ranking_table(metrics: Mapping[str, Any]) -> list[str]:
    """TVSum and YouTube Highlights: a row for each domain, then their mean."""
    if "domains" not in metrics:
        return []
    name = next(iter(metrics["brief"]))
    rows = [
        [domain, _number(row[name]), _interval(metrics, f"{name}-{domain}"), row["videos"]]
        for domain, row in metrics["domains"].items()
    ]
    mean = ["mean" if rows else "all", _number(metrics["brief"][name]), _interval(metrics, name), ""]
    return _table(["highlights", name.removeprefix("HL-"), "95 %", "videos"], [*rows, mean])


def _corpus_tables(metrics: Mapping[str, Any]) -> list[str]:
    """A row for each task and IoU threshold, a column for each rank; then NDCG."""

    def cells(name: str) -> list[str]:
        return [_number(metrics["corpus"][name]), _interval(metrics, name)]

    tasks = {f"{task}, IoU {iou}": (task, f"@{iou}") for task in ("VCMR", "SVMR") for iou in IOU_THRESHOLDS} | {"VR": ("VR", "")}
    rows = [[row, *(cell for k in RANKS for cell in cells(f"{task}-R{k}{iou}"))] for row, (task, iou) in tasks.items()]
    ndcg = [f"NDCG@{NDCG_RANK}, IoU {NDCG_IOU}", *cells(f"NDCG{NDCG_RANK}@{NDCG_IOU}")]
    header = ["corpus", *(cell for k in RANKS for cell in (f"R@{k}", "95 %"))]
    return [*_table(header, rows), *_table(["ranking", "", "95 %"], [ndcg])]


def _rejection_table(metrics: Mapping[str, Any]) -> list[str]:
    """A row for each group of absent queries."""
    rows = [
        [
            name,
            _number(part["AUROC"]),
            _interval(part, "AUROC"),
            _number(part["refused"]),
            _interval(part, "refused"),
            part["absent"],
        ]
        for name, part in metrics.get("rejection", {}).items()
    ]
    return _table(["absent", "AUROC", "95 %", "refused", "95 %", "queries"], rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    pair = metrics.get("intervals", {}).get(name)
    return f"{pair[0]:.1f} - {pair[1]:.1f}" if pair else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table and an empty line after it; nothing without rows."""
    return [*table(header, rows), ""] if rows else []

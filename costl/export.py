"""Predictions and metrics for others to read: submission JSONL, Parquet, JSON and a table."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costl.annotations import Prediction
from costl.files import publish


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """The submission format of QVHighlights: one JSON object a line. Raises CostlError when it cannot be written."""
    lines = [json.dumps(prediction.to_row(), allow_nan=False) + "\n" for prediction in predictions]
    publish(path, "".join(lines).encode())


def write_parquet(path: Path, predictions: Sequence[Prediction]) -> None:
    """One row a query: qid (int64, or text when one qid is), query, vid, moments (list of start_s, end_s, score),
    saliency (list). Raises CostlError when it cannot be written."""
    whole = all(isinstance(prediction.qid, int) for prediction in predictions)
    moment = pa.struct([(name, pa.float64()) for name in ("start_s", "end_s", "score")])
    schema = pa.schema(
        [
            ("qid", pa.int64() if whole else pa.string()),
            ("query", pa.string()),
            ("vid", pa.string()),
            ("moments", pa.list_(moment)),
            ("saliency", pa.list_(pa.float64())),
        ]
    )
    rows = [
        {
            "qid": p.qid if whole else str(p.qid),
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


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """What `compute_metrics` gave, as JSON. Raises CostlError when it cannot be written."""
    publish(path, (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """What `compute_metrics` gave, as a table for the terminal; percentages with two decimals."""
    moments = {name: _moment_cells(metrics[name]) for name in ("full", "long", "middle", "short") if name in metrics}
    highlights = {
        f">= {name[7:]}": {"mAP": row["HL-mAP"], "HIT@1": row["HL-Hit1"]}
        for name, row in metrics.items()
        if name.startswith("HL-min-")
    }
    tables = [_table(title, rows) for title, rows in (("moments", moments), ("highlights", highlights)) if rows]
    return "\n\n".join([*tables, *(f"note: {note}" for note in metrics.get("notes", ()))])


def _moment_cells(metrics: Mapping[str, Any]) -> dict[str, float]:
    recall, precision = metrics["MR-R1"], metrics["MR-mAP"]
    cells = {f"R1@{t}": recall[t] for t in ("0.3", "0.5", "0.7") if t in recall}
    cells |= {"mAP@0.5": precision["0.5"], "mAP@0.75": precision["0.75"], "mAP": precision["average"]}
    return cells | ({"mIoU": metrics["MR-mIoU"]} if "MR-mIoU" in metrics else {})


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"{title:<14}" + "".join(f"{column:>10}" for column in columns)]
    lines += [f"  {name:<12}" + "".join(f"{row[column]:>10.2f}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)

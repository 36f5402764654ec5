"""Predictions and metrics for others to read: submission JSONL, Parquet and JSON; `tables` has the table."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costl.annotations import Prediction
from costl.files import publish
from costl.tables import metrics_table as metrics_table


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """The submission format of QVHighlights: one JSON object a line. Raises CostlError when it cannot be written."""
    lines = [json.dumps(prediction.to_row(), allow_nan=False) + "\n" for prediction in predictions]
    publish(path, "".join(lines).encode())


def write_parquet(path: Path, predictions: Sequence[Prediction]) -> None:
    """One row a query: qid (int64, or text when one qid is), query, vid, moments (list of start_s, end_s, score),
    saliency (list). Raises CostlError when it cannot be written."""
    # Imported here: a table of numbers needs none of it.
    import pyarrow as pa
    import pyarrow.parquet as pq

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

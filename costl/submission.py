"""The zip that the QVHighlights server took: predictions of val and test, as its evaluator wants them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from costl.data.annotations import Prediction, Query
from costl.data.splits import read_queries
from costl.metrics.checks import listed
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Tell
from costl.predict.loaded_run import open_run

SPLITS = ("val", "test")


def submit(
    path: Path,
    run: Path | None = None,
    *,
    cache: Path | None = None,
    weights: str = "best",
    device: str = "auto",
    progress: Tell | None = None,
) -> Path:
    """Predicts val and test with a run (by default the newest) and writes the zip that the QVHighlights server took.

    Raises UsageError for a missing run or split, for a qid that is no number and a video without features, by name.
    """
    ready = open_run(run, cache=cache, weights=weights, device=device)
    queries = {split: read_queries(ready.features, split) for split in SPLITS}
    check_queries(queries, set(ready.features.video_ids))
    write_submission(path, {split: ready.predict(queries[split], progress) for split in SPLITS})
    return path


def check_queries(queries: Mapping[str, Sequence[Query]], known: set[str]) -> None:
    """Refuses what the evaluator would: it asserts that both files have a row for every query, and qids are numbers.

    `known` are the videos that can be predicted. Raises UsageError that names the rows.
    """
    for split in SPLITS:
        words = [query.qid for query in queries[split] if not isinstance(query.qid, int)]
        if words:
            raise UsageError(
                f"{split}: {listed(words)} {'is' if len(words) == 1 else 'are'} no whole number, which a submission to "
                "QVHighlights needs for every qid."
            )
        lost = sorted({query.vid for query in queries[split]} - known)
        if lost:
            raise UsageError(
                f"{split}: no features of {listed(lost)}, and the evaluator wants a row for each of "
                f"{len(queries[split])} queries. Extract them, costl cache status says why they failed."
            )


def write_submission(path: Path, predictions: Mapping[str, Sequence[Prediction]]) -> None:
    """`hl_val_submission.jsonl` and `hl_test_submission.jsonl` in a zip, the same bytes for the same predictions.

    Raises CostlError when it cannot be written.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for split in SPLITS:
            lines = [json.dumps(prediction.to_row(), allow_nan=False) + "\n" for prediction in predictions[split]]
            # A fixed date and fixed rights: the clock and the machine leave no trace.
            entry = zipfile.ZipInfo(f"hl_{split}_submission.jsonl", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            file.writestr(entry, "".join(lines))
    publish(path, archive.getvalue())

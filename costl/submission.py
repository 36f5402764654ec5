"""The zip for the QVHighlights server: predictions of val and test in the format of its evaluator."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from costl.data.annotations import Prediction, Query
from costl.data.queries import read_queries
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.formats.files import publish, refuse_overwrite, refuse_suffix
from costl.pipeline.progress import ProgressCallback
from costl.predict.loaded_run import open_run

SPLITS = ("val", "test")


def submit(
    path: Path,
    run: Path | None = None,
    *,
    cache: Path | None = None,
    weights: str = "best",
    device: str = "auto",
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Predicts val and test with a run (by default the newest) and writes the zip for the QVHighlights server.

    Raises UsageError if `path` is another file (unless `overwrite`), for a missing run or split, and names each qid that is
    not a number and each video without features.
    """
    refuse_suffix(path, [".zip"])
    refuse_overwrite(path, is_ours=_is_own_submission, overwrite=overwrite)
    loaded = open_run(run, cache=cache, weights=weights, device=device)
    queries = {split: read_queries(loaded.features, split) for split in SPLITS}
    check_queries(queries, set(loaded.features.video_ids))
    write_submission(path, {split: loaded.predict(queries[split], progress) for split in SPLITS})
    return path


def _is_own_submission(content: bytes) -> bool:
    """Whether a zip begins with the entry of val, with the fixed date of `write_submission`."""
    return content.startswith(b"PK\3\4") and content[10:14] == b"\0\0\x21\0" and content[30:].startswith(b"hl_val_submission")


def check_queries(queries: Mapping[str, Sequence[Query]], video_ids: set[str]) -> None:
    """Raises UsageError for rows that the evaluator would refuse: it needs every query, with a whole number as qid.

    `video_ids` are the videos with features.
    """
    for split in SPLITS:
        invalid_qids = [query.qid for query in queries[split] if not isinstance(query.qid, int)]
        if invalid_qids:
            raise UsageError(
                f"{split}: {first_few(map(repr, invalid_qids))} {'is' if len(invalid_qids) == 1 else 'are'} not a whole number, "
                "which a submission to QVHighlights needs for every qid."
            )
        missing = sorted({query.vid for query in queries[split]} - video_ids)
        if missing:
            raise UsageError(
                f"{split}: no features of {first_few(map(repr, missing))}, but the evaluator needs a row for each of the "
                f"{len(queries[split])} queries. Extract them; costl cache status says why they failed."
            )


def write_submission(path: Path, predictions: Mapping[str, Sequence[Prediction]]) -> None:
    """Writes `hl_val_submission.jsonl` and `hl_test_submission.jsonl` to a zip: same predictions, same bytes.

    Raises CostlError when the file cannot be written.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for split in SPLITS:
            lines = [json.dumps(prediction.to_row(), allow_nan=False) + "\n" for prediction in predictions[split]]
            # A fixed date and fixed permissions, so that the bytes do not depend on the clock or the machine.
            entry = zipfile.ZipInfo(f"hl_{split}_submission.jsonl", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            file.writestr(entry, "".join(lines))
    publish(path, archive.getvalue())

"""Reads QVHighlights (Lei et al. 2021): one JSONL file for each split, as jayleicn/moment_detr distributes them."""

from __future__ import annotations

from costl.benchmarks.common import Annotations, Benchmark, DurationOf, Files, Layout, read_windows
from costl.pipeline.errors import UsageError


def read(files: Files, duration_of: DurationOf) -> Annotations:
    """Three splits. The test split has labels if the file with them (published in 2026) exists."""
    splits = {split: read_windows(files[split]) for split in ("train", "val")}
    if "labelled" in files:
        splits["test"] = read_windows(files["labelled"])
        return Annotations(splits, (f"test: with labels, from {files['labelled'].name}.",))
    if "unlabelled" not in files:
        raise UsageError(
            f"{files['train'].parent}: no test split. Expected {' or '.join((*LABELLED, *UNLABELLED))} in the same folder."
        )
    splits["test"] = read_windows(files["unlabelled"])
    note = f"test: without labels, from {files['unlabelled'].name}: costl evaluate can predict it, but not score it."
    return Annotations(splits, (f"{note} Its labels are in {LABELLED[0]}.",))


LABELLED = ("highlight_test_with_gt.jsonl",)
UNLABELLED = ("highlight_test_release.jsonl",)
QVHIGHLIGHTS = Benchmark(
    name="qvhighlights",
    title="QVHighlights",
    layouts=(
        Layout(
            files={"train": ("highlight_train_release.jsonl",), "val": ("highlight_val_release.jsonl",)},
            extras={"labelled": LABELLED, "unlabelled": UNLABELLED},
            read=read,
        ),
    ),
)

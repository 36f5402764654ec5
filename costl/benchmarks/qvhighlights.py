"""Reads QVHighlights (Lei et al. 2021): one JSONL file for each split, as jayleicn/moment_detr distributes them."""

from __future__ import annotations

from costl.benchmarks.common import Annotations, Benchmark, DurationOf, Files, Layout, read_splits

LABELLED = "highlight_test_with_gt.jsonl"
UNLABELLED = "highlight_test_release.jsonl"


def read(files: Files, duration_of: DurationOf) -> Annotations:
    """Three splits. The test split has labels if the file with them (published in 2026) exists."""
    name = files["test"].name
    note = f"test: with labels, from {name}."
    if name == UNLABELLED:
        note = (
            f"test: without labels, from {name}: costl evaluate can predict it, but not score it. Its labels are in {LABELLED}."
        )
    return Annotations(read_splits(files, duration_of).splits, (note,))


QVHIGHLIGHTS = Benchmark(
    name="qvhighlights",
    title="QVHighlights",
    layouts=(
        Layout(
            files={
                "train": ("highlight_train_release.jsonl",),
                "val": ("highlight_val_release.jsonl",),
                "test": (LABELLED, UNLABELLED),
            },
            read=read,
        ),
    ),
)

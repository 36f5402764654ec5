"""QVHighlights (Lei et al. 2021): one JSONL file for each split, as jayleicn/moment_detr spreads them."""

from __future__ import annotations

from costl.benchmarks.common import Benchmark, Files, Layout, Reading, Seconds, read_windows
from costl.pipeline.errors import UsageError


def read(files: Files, seconds: Seconds) -> Reading:
    """Three splits; the labels of the test split where the file that has them (published in 2026) is there."""
    splits = {split: read_windows(files[split]) for split in ("train", "val")}
    if "labelled" in files:
        splits["test"] = read_windows(files["labelled"])
        return Reading(splits, (f"test: with labels, from {files['labelled'].name}.",))
    if "unlabelled" not in files:
        raise UsageError(
            f"{files['train'].parent}: no test split. Expected {' or '.join((*LABELLED, *UNLABELLED))} beside the others."
        )
    splits["test"] = read_windows(files["unlabelled"])
    note = f"test: without labels, from {files['unlabelled'].name}: costl evaluate can predict it, but not score it."
    return Reading(splits, (f"{note} Its labels are in {LABELLED[0]}.",))


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

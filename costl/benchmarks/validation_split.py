"""Which training videos are held out for validation where a benchmark has no validation split."""

from __future__ import annotations

import hashlib

from costl.benchmarks.common import Annotations, Benchmark, Row
from costl.pipeline.errors import UsageError


def resolve_val_share(benchmark: Benchmark, val_share: float | None) -> float:
    """The share of training videos to hold out. Raises UsageError for one that the benchmark cannot have."""
    if val_share is None:
        return benchmark.val_share or 0.0
    if benchmark.val_share is None:
        raise UsageError(f"--val-share: {benchmark.title} has a validation split of its own. Leave it out.")
    if not 0 <= val_share < 1:
        raise UsageError(f"--val-share is {val_share}, expected 0 or more and below 1.")
    return val_share


def split_rows(
    benchmark: Benchmark, official: Annotations, *, share: float, seed: int
) -> tuple[dict[str, list[Row]], list[str]]:
    """The splits, with training videos held out for validation if necessary, and notes about them.

    Raises UsageError for a split without a row.
    """
    splits = {split: list(rows) for split, rows in official.splits.items()}
    notes = []
    if benchmark.val_share is not None:
        held_out = [row for row in splits["train"] if _is_held_out(row.query.vid, share=share, seed=seed)]
        train = [row for row in splits["train"] if not _is_held_out(row.query.vid, share=share, seed=seed)]
        videos = len({row.query.vid for row in held_out})
        note = f"val: {videos} training videos held out (share {share:g}, seed {seed}): {benchmark.val_reason}."
        if share == 0:
            note = f"val: none, {benchmark.val_reason}. --val-share 0.1 would hold out a tenth of the training videos."
        notes = [note]
        splits = {"train": train, **({"val": held_out} if held_out else {}), "test": splits["test"]}
    empty = [split for split, rows in splits.items() if not rows]
    if empty:
        raise UsageError(
            f"{benchmark.title}: no row for {', '.join(empty)}. Check the annotation files and --val-share."
        )
    return splits, notes


def _is_held_out(vid: str, *, share: float, seed: int) -> bool:
    return hash_of_video(vid, seed) < share * 2**64


def hash_of_video(vid: str, seed: int) -> int:
    """A number in [0, 2**64) that depends on the name of a video and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{vid}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")

"""Which videos train, validate and test: as the labels say, or by a hash of the video's name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from costl.benchmarks.common import SPLITS
from costl.benchmarks.validation_split import hash_of_video
from costl.converters.rows import SplitRow
from costl.pipeline.errors import UsageError, first_few

DEFAULT_SHARE = 0.15
FEW = 20  # videos; with fewer, a hash alone may leave a split empty or too large


def check_share(val_share: float | None) -> float:
    """The share of videos to validate, and as many to test. Raises UsageError."""
    share = DEFAULT_SHARE if val_share is None else val_share
    if not 0 <= share < 0.5:
        raise UsageError(f"--val-share is {val_share}, expected 0 or more and below 0.5: as many videos test the model.")
    return share


def split_rows(rows: Sequence[SplitRow], *, share: float, seed: int) -> tuple[dict[str, list[SplitRow]], str]:
    """The rows by split, in the order of SPLITS without empty ones, and a note about how they were split.

    Where no row has a split, `choose_splits` decides by video. Where training rows have no validation rows with them, some
    of their videos validate. Raises UsageError where only some of the rows have a split.
    """
    without = [row.query.vid for row in rows if not row.split]
    if without and len(without) < len(rows):
        vids = first_few(dict.fromkeys(without))
        raise UsageError(f"{len(without)} of {len(rows)} rows have no split, such as those of {vids}. Give each row one.")
    by_split: dict[str, list[SplitRow]] = defaultdict(list)
    for row in rows:
        by_split[row.split].append(row)
    if without:
        chosen = choose_splits(without, share=share, seed=seed)
        return _deal(rows, chosen), _chosen_note(chosen, share, seed)
    note = "Splits: as the labels give them."
    if by_split["train"] and not by_split["val"] and share:
        held_out = choose_splits((row.query.vid for row in by_split["train"]), share=share, seed=seed, with_test=False)
        by_split |= _deal(by_split["train"], held_out)
        videos = sum(split == "val" for split in held_out.values())
        note = f"Splits: as the labels give them; val: {videos} training videos held out (share {share:g}, seed {seed})."
    return {split: by_split[split] for split in SPLITS if by_split[split]}, note


def _deal(rows: Iterable[SplitRow], chosen: Mapping[str, str]) -> dict[str, list[SplitRow]]:
    """The rows by the split that was chosen for their video, in the order of SPLITS without empty ones."""
    by_split: dict[str, list[SplitRow]] = defaultdict(list)
    for row in rows:
        by_split[chosen[row.query.vid]].append(row)
    return {split: by_split[split] for split in SPLITS if by_split[split]}


def choose_splits(vids: Iterable[str], *, share: float, seed: int, with_test: bool = True) -> dict[str, str]:
    """The split of each video: a `share` of them validates, and as many test if `with_test`, by a hash of name and seed.

    From FEW videos on, a video's hash alone decides, so that adding a video moves no other. With fewer, the shares are
    exact. In both cases one video at least validates if there are two, and one at least tests if there are three.
    """
    order = sorted(set(vids), key=lambda vid: _position(vid, seed))
    val = _count(order, low=0.0, high=share, seed=seed) if share and len(order) > 1 else 0
    test = _count(order, low=share, high=2 * share, seed=seed) if share and with_test and len(order) > 2 else 0
    names = ["val"] * val + ["test"] * test
    return dict(zip(order, [*names, *["train"] * (len(order) - len(names))], strict=True))


def _count(order: Sequence[str], *, low: float, high: float, seed: int) -> int:
    """How many videos a split gets that has the positions from `low` to `high`."""
    by_hash = sum(low <= _position(vid, seed) < high for vid in order)
    return max(1, by_hash if len(order) >= FEW else round((high - low) * len(order)))


def _position(vid: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name of a video and the seed alone."""
    return hash_of_video(vid, seed) / 2**64


def _chosen_note(chosen: Mapping[str, str], share: float, seed: int) -> str:
    counts = ", ".join(f"{sum(split == name for split in chosen.values())} {name}" for name in SPLITS)
    few = f" Below {FEW} videos, adding one may move another." if len(chosen) < FEW else ""
    return f"Splits: by video, {counts} (share {share:g} each for val and test, seed {seed}).{few}"

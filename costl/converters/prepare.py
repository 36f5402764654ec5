"""`costl prepare`: a benchmark by its name, or a user's own labels by their path, to JSONL files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

from costl.benchmarks.common import NO_WINDOW, to_row
from costl.benchmarks.layouts import BENCHMARKS, find_benchmark
from costl.benchmarks.output import PrepareReport, refuse_other_content, shared_videos, write_output
from costl.benchmarks.prepare import prepare as prepare_benchmark
from costl.converters.find_layout import LabelFile, find_labels
from costl.converters.labels import Label
from costl.converters.rows import UNKNOWN_LENGTH, SplitRow, make_rows
from costl.converters.splits import check_share, split_rows
from costl.converters.times import parse_rate
from costl.converters.video_folder import VideoFolder
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.progress import ProgressCallback


def prepare(
    name: str,
    *,
    out: Path,
    annotations: Path | None = None,
    videos: Path | None = None,
    allow_missing_videos: bool = False,
    val_share: float | None = None,
    seed: int = 0,
    frame_rate: str | None = None,
    progress: ProgressCallback | None = None,
) -> PrepareReport:
    """Converts the benchmark `name`, or else the labels at the path `name`; see `costl.benchmarks.prepare.prepare` and
    `prepare_labels`, which have the same arguments. Raises UsageError."""
    shared: dict[str, Any] = {"out": out, "videos": videos, "allow_missing_videos": allow_missing_videos}
    shared |= {"val_share": val_share, "seed": seed, "progress": progress}
    if name in BENCHMARKS:
        if annotations is None:
            raise UsageError(f"--annotations is missing: the folder of the official files of {find_benchmark(name).title}.")
        if frame_rate is not None:
            raise UsageError("--frame-rate is for your own labels that count frames. Leave it out.")
        return prepare_benchmark(name, annotations=annotations, **shared)
    if not name.strip() or not os.path.exists(name):
        raise UsageError(
            f"{name!r} is not a known benchmark, and no such file or folder exists. Expected one of "
            f"{', '.join(BENCHMARKS)}, or the path of your own labels, such as labels.csv."
        )
    if annotations is not None:
        raise UsageError(f"--annotations is for benchmarks, and {name!r} is a path: its labels are read. Leave one of them out.")
    return prepare_labels(Path(name), frame_rate=None if frame_rate is None else parse_rate(frame_rate), **shared)


def prepare_labels(
    source: Path,
    *,
    out: Path,
    videos: Path | None = None,
    allow_missing_videos: bool = False,
    val_share: float | None = None,
    seed: int = 0,
    frame_rate: Fraction | None = None,
    progress: ProgressCallback | None = None,
) -> PrepareReport:
    """Writes {train,val,test}.jsonl and report.json of a user's own labels into the folder `out`.

    `source` is a file of labels or a folder of them, in a layout that `find_labels` knows. `videos` is the folder of the
    videos. With `allow_missing_videos` it may be left out; rows of missing videos are written if their duration is known,
    and the videos are listed in missing.txt. Where the labels give no splits, `val_share` of the videos validate and as
    many test, by `choose_splits`. `frame_rate`: frames a second at which labels count, if it is not that of their videos.
    The same input gives the same bytes. Raises UsageError for a wrong folder, file or row (with file and row), for missing
    videos, and for a folder `out` with other files.
    """
    share = check_share(val_share)
    _refuse_arguments(source, out, videos, allow_missing_videos=allow_missing_videos)
    files = find_labels(source)
    folder = VideoFolder(videos, allow_none=allow_missing_videos, frame_rate=frame_rate, progress=progress)
    labels, notes = _read(files, folder)
    if not labels:
        raise UsageError(f"{source}: no labels in it. {' '.join(notes)}".rstrip())
    missing = _missing(source, labels, folder, allow=allow_missing_videos)
    folder.refuse_shared_files(label.video for label in labels)
    rows = make_rows(labels, folder)
    kept = [row for row in rows if NO_WINDOW not in row.row.quirks]
    if not kept:
        raise UsageError(f"{source}: no row with a moment inside a video of known duration. Pass --videos with their folder.")
    splits, split_note = split_rows(kept, share=share, seed=seed)
    splits, unlabelled_notes = _without_unlabelled(splits)
    queries = {split: [row.query for row in split_rows] for split, split_rows in splits.items()}
    vids = sorted({folder.vid_of(name) for name in missing})
    notes += [*folder.rate_notes(), *_dropped_notes(rows), *unlabelled_notes, *_similar_notes(missing, folder), split_note]
    report = PrepareReport(
        benchmark="",
        title=source.name,
        sources={file.path.name: hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files},
        options={
            "val_share": share,
            "seed": seed,
            "allow_missing_videos": allow_missing_videos,
            "frame_rate": str(frame_rate) if frame_rate else None,
        },
        splits={split: _count(split_rows, vids) for split, split_rows in splits.items()},
        notes=(*notes, *shared_videos(queries)),
        out=out,
        videos=videos,
        missing=vids,
    )
    lines = {split: [{**to_row(row.query), **row.row.fields} for row in split_rows] for split, split_rows in splits.items()}
    write_output(out, report, lines)
    return report


def _refuse_arguments(source: Path, out: Path, videos: Path | None, *, allow_missing_videos: bool) -> None:
    if out.exists() and os.path.samefile(out, source if source.is_dir() else source.parent):
        raise UsageError(f"{out}: the folder of the labels. Choose another --out.")
    refuse_other_content(out, "", source.name)
    if videos is None and not allow_missing_videos:
        raise UsageError("--videos is missing: the folder of the videos. Without them, pass --allow-missing-videos.")


def _read(files: Sequence[LabelFile], folder: VideoFolder) -> tuple[list[Label], list[str]]:
    """The labels of all files with their splits, and the notes about them, each once.

    The names of several files are splits if all of them are; so is that of a single file that is published under it.
    """
    named = [file for file in files if file.split]
    if named and len(named) < len(files):
        other = next(file for file in files if not file.split)
        raise UsageError(
            f"{named[0].path.name} names a split, and {other.path.name} does not. Rename one of them, or give rows a split."
        )
    by_name = bool(named) and (len(files) > 1 or files[0].layout.named_splits)
    labels: list[Label] = []
    notes: list[str] = []
    for file in files:
        read = file.read(folder)
        notes += read.notes
        split = file.split if by_name else ""
        labels += [replace(label, split=split) if split and not label.split else label for label in read.labels]
    return labels, list(dict.fromkeys(notes))


def _missing(source: Path, labels: Iterable[Label], folder: VideoFolder, *, allow: bool) -> list[str]:
    """The names without a file, sorted. Raises UsageError that lists the first ones with similar files, unless allowed."""
    names = dict.fromkeys(label.video for label in labels)
    missing = sorted(name for name in names if folder.find(name) is None)
    if missing and not allow:
        raise UsageError(
            f"{len(missing)} of {len(names)} videos of {source} are missing: {_with_similar(missing, folder)}. Rename or add "
            "their files, or pass --allow-missing-videos."
        )
    return missing


def _similar_notes(missing: Sequence[str], folder: VideoFolder) -> list[str]:
    return [f"{len(missing)} videos are missing: {_with_similar(missing, folder)}."] if missing else []


def _with_similar(missing: Sequence[str], folder: VideoFolder) -> str:
    """The first few names, each with the file whose name is most like it: to compare all names would take long."""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return first_few(map(folder.with_similar, missing[:5])) + more


def _dropped_notes(rows: Iterable[SplitRow]) -> list[str]:
    """A sentence about the rows that are not written, with the reasons."""
    dropped = [row.row for row in rows if NO_WINDOW in row.row.quirks]
    unknown = sum(UNKNOWN_LENGTH in row.quirks for row in dropped)
    reasons = {"their moments lie outside their videos": len(dropped) - unknown}
    reasons |= {"their videos are missing, and with them their durations": unknown}
    return [f"{count} rows are dropped: {reason}." for reason, count in reasons.items() if count]


def _without_unlabelled(splits: Mapping[str, Sequence[SplitRow]]) -> tuple[dict[str, list[SplitRow]], list[str]]:
    """The splits; in val and test without the rows that have neither moments nor ratings, which cannot be scored next to others.

    In train such a sentence, which may not be in its video, serves as a wrong one for other videos.
    """
    kept = {split: list(rows) for split, rows in splits.items()}
    for split in kept.keys() - {"train"}:
        labelled = [row for row in kept[split] if row.query.windows or row.query.clip_ids]
        kept[split] = labelled or kept[split]  # a split without any label can be predicted
    left_out = sum(len(rows) - len(kept[split]) for split, rows in splits.items())
    note = f"val and test: {left_out} rows without a moment are left out, as where a sentence is not in its video."
    return kept, [note] if left_out else []


def _count(rows: Sequence[SplitRow], missing: Sequence[str]) -> dict[str, Any]:
    videos = Counter(row.query.vid for row in rows)
    lengths = [end - start for row in rows for start, end in row.query.windows]
    quirks = Counter(quirk for row in rows for quirk in row.row.quirks)
    return {
        "labels": sum(row.labels for row in rows),
        "rows": len(rows),
        "sentences": len({row.query.query for row in rows}),
        "videos": len(videos),
        "missing": len(videos.keys() & set(missing)),
        "windows": len(lengths),
        "window_s": _spread(lengths),
        "rows_per_video": _spread(videos.values()),
        "rated": sum(len(row.query.clip_ids) for row in rows),
        "quirks": dict(sorted(quirks.items())),
    }


def _spread(values: Iterable[float]) -> list[float] | int:
    """[minimum, median, maximum], rounded to milliseconds; 0 for no values."""
    numbers = [round(value, 3) for value in values]
    return [min(numbers), round(median(numbers), 3), max(numbers)] if numbers else 0

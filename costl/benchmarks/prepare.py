"""Converts the official annotation files of a benchmark to JSONL: finds, reads, checks, splits, matches videos, writes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from costl.benchmarks.common import NO_WINDOW, Row, to_row
from costl.benchmarks.durations import durations
from costl.benchmarks.layouts import find_benchmark, find_layout
from costl.benchmarks.output import PrepareReport, refuse_other_content, shared_videos, write_output
from costl.benchmarks.validation_split import resolve_val_share, split_rows
from costl.config_files import benchmark_settings
from costl.data.annotations import Query
from costl.pipeline.errors import UsageError, first_few
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.videos import find_videos


def prepare(
    name: str,
    *,
    annotations: Path,
    out: Path,
    videos: Path | None = None,
    allow_missing_videos: bool = False,
    val_share: float | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> PrepareReport:
    """Writes {train,val,test}.jsonl, costl.yaml and report.json of a benchmark into the folder `out`.

    `annotations` is the folder of the official files, or one of them if the folder has several layouts. `videos` is the
    folder of the videos. With `allow_missing_videos` it may be left out or be empty: rows of missing videos are written
    too, and the videos are listed in missing.txt. A folder that does not exist is always refused, because its name is
    probably mistyped. If the benchmark has no validation split, `val_share` of the training videos are held out: a hash
    of `seed` and the name of the video decides, so that adding a video does not move others. The same input gives the
    same bytes. Raises UsageError for a wrong name, folder, file or row (with file and line), for missing videos, and for
    a folder `out` with other files.
    """
    benchmark = find_benchmark(name)
    share = resolve_val_share(benchmark, val_share)
    refuse_other_content(out, benchmark.name, benchmark.title)
    if videos is None and not allow_missing_videos:
        raise UsageError("--videos is missing: the folder of the videos. Without them, pass --allow-missing-videos.")
    layout, files = find_layout(benchmark, annotations)
    by_stem = {video.path.stem: video.path for video in find_videos(videos, allow_none=allow_missing_videos)} if videos else {}

    def find(vid: str) -> Path | None:
        return by_stem.get(vid) or by_stem.get(vid + benchmark.file_suffix)

    official = layout.read(files, durations(find, progress))
    splits, notes = split_rows(benchmark, official, share=share, seed=seed)
    written = {split: [row for row in rows if NO_WINDOW not in row.quirks] for split, rows in splits.items()}
    annotated = {row.query.vid for rows in written.values() for row in rows}
    missing = sorted(vid for vid in annotated if find(vid) is None)
    if missing and not allow_missing_videos:
        raise UsageError(
            f"{videos}: {len(missing)} of {len(annotated)} videos of {benchmark.title} are missing: {first_few(missing)}. "
            "Add them, or pass --allow-missing-videos to write all rows and a list of these."
        )
    report = PrepareReport(
        benchmark=benchmark.name,
        title=benchmark.title,
        sources={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()},
        options={"val_share": share, "seed": seed, "allow_missing_videos": allow_missing_videos},
        splits={split: _count(rows, written[split], missing) for split, rows in splits.items()},
        notes=(*official.notes, *notes, *_warnings(splits)),
        out=out,
        videos=videos,
        missing=missing,
    )
    lines = {split: [to_row(_named_like_file(row.query, find)) for row in rows] for split, rows in written.items()}
    write_output(out, report, lines, settings=benchmark_settings(name).read_text(encoding="utf-8"))
    return report


def _named_like_file(query: Query, find: Callable[[str], Path | None]) -> Query:
    """The query with its video named like the file, which is the name in the cache."""
    path = find(query.vid)
    return replace(query, vid=path.stem) if path else query


def _warnings(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    dropped = sum(NO_WINDOW in row.quirks for row in splits["test"])
    # They have no window to be scored against. Other projects drop them too.
    warning = f"test: {dropped} rows without a usable window are dropped, so this is not the published test split."
    warnings = [warning] if dropped else []
    return [*warnings, *shared_videos({split: [row.query for row in rows] for split, rows in splits.items()})]


def _count(rows: Sequence[Row], written: Sequence[Row], missing: Sequence[str]) -> dict[str, Any]:
    videos = {row.query.vid for row in written}
    quirks = Counter(quirk for row in rows for quirk in row.quirks)
    return {
        "rows": len(written),
        "videos": len(videos),
        "missing": len(videos & set(missing)),
        "windows": sum(len(row.query.windows) for row in written),
        "rated": sum(len(row.query.clip_ids) for row in written),
        "quirks": dict(sorted(quirks.items())),
    }

"""Converts the official annotation files of a benchmark to JSONL: finds, reads, checks, splits, matches videos, writes."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any

from costl.benchmarks.common import NO_WINDOW, SPLITS, Benchmark, DurationOf, Row, to_row
from costl.benchmarks.layouts import find_benchmark, find_layout
from costl.benchmarks.validation_split import resolve_val_share, split_rows
from costl.config_files import benchmark_settings
from costl.data.annotations import Query
from costl.pipeline.errors import CostlError, UsageError, VideoError, first_few
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.table import table
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import find_videos

MADE_BY = "costl prepare"
_REPORT, _SETTINGS, _MISSING = "report.json", "costl.yaml", "missing.txt"
_WRITTEN = {_REPORT, _SETTINGS, _MISSING, *(f"{split}.jsonl" for split in SPLITS)}


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`: `sources` with their sha256, the counts of each split, notes for the user, the folder `out`
    that it wrote, the folder of `videos`, and the annotated videos without a file, sorted.

    The counts of a split are rows, videos, missing videos, windows, rated clips, and `quirks`: by name how often something
    was corrected or remarkable.
    """

    benchmark: str
    title: str
    sources: Mapping[str, str]
    options: Mapping[str, Any]
    splits: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]
    out: Path
    videos: Path | None
    missing: Sequence[str]
    exit_code = 0

    def data(self) -> dict[str, Any]:
        """The content of report.json. It has the number of missing videos; missing.txt has their names."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("out", "videos", "missing")}
        return {"made_by": MADE_BY, **fields}

    def messages(self) -> list[str]:
        """What was read, the notes, where the missing videos are listed, and the next command."""
        missing = [f"Missing videos: {self.out / _MISSING}"] if self.missing else []
        videos = shlex.quote(str(self.videos)) if self.videos else "DIR"
        extract = f"costl extract --videos {videos} --annotations {shlex.quote(str(self.out))} --out {self.benchmark}.h5"
        allow = " --allow-missing-videos" if self.missing else ""
        return [f"Read {', '.join(self.sources)}.", *self.notes, *missing, f"Next: {extract}{allow}"]

    def lines(self) -> list[str]:
        """The report for a terminal: a row for each thing counted, a column for each split."""
        printed = {"missing": "missing videos", "rated": "rated clips"}
        counts = [{**split, **split["quirks"]} for split in self.splits.values()]
        names = [name for name in dict.fromkeys(chain(*counts)) if name != "quirks"]
        rows = [[printed.get(name, name), *(count.get(name, 0) for count in counts)] for name in names]
        return table([self.title, *self.splits], (row for row in rows if any(row[1:])))


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
    _refuse_other_content(out, benchmark)
    if videos is None and not allow_missing_videos:
        raise UsageError("--videos is missing: the folder of the videos. Without them, pass --allow-missing-videos.")
    layout, files = find_layout(benchmark, annotations)
    by_stem = {video.path.stem: video.path for video in find_videos(videos, allow_none=allow_missing_videos)} if videos else {}

    def find(vid: str) -> Path | None:
        return by_stem.get(vid) or by_stem.get(vid + benchmark.file_suffix)

    official = layout.read(files, _durations(find, progress or (lambda _: None)))
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
    _write(out, report, {split: [_named_like_file(row.query, find) for row in rows] for split, rows in written.items()})
    return report


def _named_like_file(query: Query, find: Callable[[str], Path | None]) -> Query:
    """The query with its video named like the file, which is the name in the cache."""
    path = find(query.vid)
    return replace(query, vid=path.stem) if path else query


def _durations(find: Callable[[str], Path | None], report_progress: ProgressCallback) -> DurationOf:
    counter = count(1)

    @cache
    def duration_of(vid: str) -> float:
        from costl.pipeline.decode.backends import open_video

        path = find(vid)
        if path is None:
            raise VideoError(f"{vid}: its video is missing.")
        done = next(counter)
        report_progress(Progress("durations", done, done, path.name))
        with open_video(path) as video:
            return video.duration_s

    return duration_of


def _refuse_other_content(out: Path, benchmark: Benchmark) -> None:
    """Raises UsageError where `out` has anything but an earlier output for the same benchmark."""
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if not names:
        return
    try:
        earlier = json.loads((out / _REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    own_output = isinstance(earlier, dict) and earlier.get("made_by") == MADE_BY
    others = sorted(names - _WRITTEN if own_output else names)
    if others:
        raise UsageError(f"{out}: holds files that {MADE_BY} did not write ({first_few(others)}). Choose another --out.")
    if earlier.get("benchmark") != benchmark.name:
        raise UsageError(f"{out}: holds {earlier.get('title')}. Choose another --out for {benchmark.title}.")


def _warnings(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    dropped = sum(NO_WINDOW in row.quirks for row in splits["test"])
    # They have no window to be scored against. Other projects drop them too.
    warning = f"test: {dropped} rows without a usable window are dropped, so this is not the published test split."
    warnings = [warning] if dropped else []
    videos = {split: {row.query.vid for row in rows} for split, rows in splits.items()}
    for one, other in combinations(splits, 2):
        shared = videos[one] & videos[other]
        if shared:
            warnings.append(f"{one} and {other} share {len(shared)} videos: {first_few(sorted(shared))}.")
    return warnings


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


def _write(out: Path, report: PrepareReport, splits: Mapping[str, Sequence[Query]]) -> None:
    # The report comes first, so that the next call recognises the files of a killed one. train.jsonl comes last, so that
    # nothing is trained on an incomplete output.
    contents = {
        _REPORT: json.dumps(report.data(), indent=2, ensure_ascii=False) + "\n",
        _SETTINGS: benchmark_settings(report.benchmark).read_text(encoding="utf-8"),
        _MISSING: "".join(f"{vid}\n" for vid in report.missing),
    }
    for split in reversed(list(splits)):
        rows = [json.dumps(to_row(query), ensure_ascii=False) + "\n" for query in splits[split]]
        contents[f"{split}.jsonl"] = "".join(rows)
    try:
        for name in _WRITTEN - {_REPORT}:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise CostlError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from error
    for name, content in contents.items():
        if content:
            publish(out / name, content.encode())

"""Converts the official annotation files of a benchmark to JSONL: finds, reads, checks, splits, matches videos, writes."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from costl.benchmarks.common import NO_WINDOW, Annotations, Benchmark, DurationOf, Files, Layout, Row, to_row
from costl.benchmarks.layouts import find_benchmark, find_layout
from costl.benchmarks.validation_split import SPLITS, resolve_val_share, split_rows
from costl.config_files import benchmark_settings
from costl.pipeline.errors import CostlError, UsageError, VideoError, first_few
from costl.pipeline.formats.files import publish
from costl.pipeline.formats.table import table
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import find_videos

REPEATED = "rows that repeat another one, kept"
MADE_BY = "costl prepare"
_REPORT, _SETTINGS, _MISSING = "report.json", "costl.yaml", "missing.txt"
_NO_VIDEO = "its video is missing"  # in an error of a reader that needs the duration of this video
_WRITTEN = {_REPORT, _SETTINGS, _MISSING, *(f"{split}.jsonl" for split in SPLITS)}


@dataclass(frozen=True)
class SplitReport:
    """The counts of one written split; `quirks` has by name how often something was corrected or remarkable."""

    rows: int
    videos: int
    missing: tuple[str, ...]
    windows: int
    rated: int
    quirks: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """What was counted, by the name that is printed."""
        totals = {"rows": self.rows, "videos": self.videos, "missing videos": len(self.missing)}
        return totals | {"windows": self.windows, "rated clips": self.rated} | dict(self.quirks)


@dataclass(frozen=True)
class PrepareReport:
    """The result of `prepare`: `sources` with their sha256, the counts of each split, notes for the user, the folder `out`
    that it wrote, and the folder of `videos`."""

    benchmark: str
    title: str
    sources: Mapping[str, str]
    options: Mapping[str, Any]
    splits: Mapping[str, SplitReport]
    notes: tuple[str, ...]
    out: Path
    videos: Path | None
    exit_code = 0

    @property
    def missing(self) -> tuple[str, ...]:
        """Annotated videos without a file, sorted."""
        return tuple(sorted({vid for split in self.splits.values() for vid in split.missing}))

    def data(self) -> dict[str, Any]:
        """The content of report.json. It has the number of missing videos; missing.txt has their names."""
        splits = {name: asdict(split) | {"missing": len(split.missing)} for name, split in self.splits.items()}
        fields = {name: value for name, value in asdict(self).items() if name not in ("out", "videos")}
        return {"made_by": MADE_BY, **fields, "splits": splits}

    def messages(self) -> list[str]:
        """What was read, the notes, where the missing videos are listed, and the next command."""
        missing = [f"Missing videos: {self.out / _MISSING}"] if self.missing else []
        return [f"Read {', '.join(self.sources)}.", *self.notes, *missing, f"Next: {self.next_command()}"]

    def next_command(self) -> str:
        """The command that extracts these videos."""
        videos = shlex.quote(str(self.videos)) if self.videos else "DIR"
        more = " --allow-missing-videos" if self.missing else ""
        return f"costl extract --videos {videos} --annotations {shlex.quote(str(self.out))} --out {self.benchmark}.h5{more}"

    def lines(self) -> list[str]:
        """The report for a terminal: a row for each thing counted, a column for each split."""
        counts = [split.counts() for split in self.splits.values()]
        rows = [[name, *(count.get(name, 0) for count in counts)] for name in dict.fromkeys(chain(*counts))]
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
    video_files = _VideoFiles(benchmark, _files_by_stem(videos, allow_none=allow_missing_videos))
    duration_of = _durations(video_files, progress or (lambda _: None))
    official = _read(layout, files, duration_of, videos=videos)
    splits, notes = split_rows(benchmark, official, share=share, seed=seed)
    notes += _warnings(splits)
    report = PrepareReport(
        benchmark=benchmark.name,
        title=benchmark.title,
        sources={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()},
        options={"val_share": share, "seed": seed, "allow_missing_videos": allow_missing_videos},
        splits={split: _count(rows, video_files) for split, rows in splits.items()},
        notes=(*official.notes, *notes),
        out=out,
        videos=videos,
    )
    if report.missing and not allow_missing_videos:
        annotated = {row.query.vid for rows in splits.values() for row in rows}
        raise UsageError(
            f"{videos}: {len(report.missing)} of {len(annotated)} videos of {report.title} are missing: "
            f"{first_few(report.missing)}. Add them, or pass --allow-missing-videos to write all rows and a list of these."
        )
    _write(out, report, {split: [video_files.rename(row) for row in rows] for split, rows in splits.items()})
    return report


def _files_by_stem(videos: Path | None, *, allow_none: bool) -> dict[str, Path]:
    if videos is None:
        return {}
    return {video.path.stem: video.path for video in find_videos(videos, allow_none=allow_none)}


def _read(layout: Layout, files: Files, duration_of: DurationOf, *, videos: Path | None) -> Annotations:
    """The official rows. An error about the duration of a missing video gets a next step."""
    try:
        return layout.read(files, duration_of)
    except UsageError as error:
        if _NO_VIDEO not in str(error):
            raise
        remedy = "Pass --videos with the folder of the videos" if videos is None else f"Add these videos to {videos}"
        raise UsageError(
            f"{error}\nWhere the annotations have no durations, these come from the videos. {remedy}, or add the files "
            "that have the durations."
        ) from error


class _VideoFiles:
    """The file of each video by its name in the annotations."""

    def __init__(self, benchmark: Benchmark, by_stem: Mapping[str, Path]):
        self._stems_of = benchmark.file_stems
        self._by_stem = by_stem

    def find(self, vid: str) -> Path | None:
        """The path of the video, None if it is missing."""
        return next((self._by_stem[stem] for stem in self._stems_of(vid) if stem in self._by_stem), None)

    def rename(self, row: Row) -> Row:
        """The row with its video named like the file, which is the name in the cache."""
        path = self.find(row.query.vid)
        return replace(row, query=replace(row.query, vid=path.stem if path else row.query.vid))


def _durations(video_files: _VideoFiles, report_progress: ProgressCallback) -> DurationOf:
    count = 0

    @cache
    def duration_of(vid: str) -> float:
        from costl.pipeline.decode.backends import open_video

        nonlocal count
        path = video_files.find(vid)
        if path is None:
            raise VideoError(f"{vid}: {_NO_VIDEO}.")
        count += 1
        report_progress(Progress("durations", count, count, path.name))
        with open_video(path) as video:
            return video.duration_s

    return duration_of


def _refuse_other_content(out: Path, benchmark: Benchmark) -> None:
    """Raises UsageError where `out` has anything but an earlier output for the same benchmark."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file, expected a folder to write to. Choose another --out.")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    try:
        earlier = json.loads((out / _REPORT).read_text(encoding="utf-8")) if _REPORT in names else {}
    except (OSError, ValueError):
        earlier = {}
    own_output = isinstance(earlier, dict) and earlier.get("made_by") == MADE_BY
    if names and not (own_output and names <= _WRITTEN):
        others = sorted(names - _WRITTEN if own_output else names)
        raise UsageError(
            f"{out}: holds files that {MADE_BY} did not write ({first_few(others)}). "
            "Choose another --out."
        )
    if own_output and earlier.get("benchmark") != benchmark.name:
        raise UsageError(f"{out}: holds {earlier.get('title')}. Choose another --out for {benchmark.title}.")


def _warnings(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    warnings = []
    dropped = sum(NO_WINDOW in row.quirks for row in splits["test"])
    if dropped:
        # They have no window to be scored against. Other projects drop them too.
        warnings.append(
            f"test: {dropped} rows without a usable window are dropped, so this is not the published test split."
        )
    videos = {split: {row.query.vid for row in rows} for split, rows in splits.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = videos.get(one, set()) & videos.get(other, set())
        if shared:
            warnings.append(f"{one} and {other} share {len(shared)} videos: {first_few(sorted(shared))}.")
    return warnings


def _count(rows: Sequence[Row], video_files: _VideoFiles) -> SplitReport:
    written = [row for row in rows if NO_WINDOW not in row.quirks]
    videos = {row.query.vid for row in written}
    quirks = Counter(quirk for row in rows for quirk in row.quirks)
    repeated = len(written) - len({replace(row.query, qid=0) for row in written})
    return SplitReport(
        rows=len(written),
        videos=len(videos),
        missing=tuple(sorted(vid for vid in videos if video_files.find(vid) is None)),
        windows=sum(len(row.query.windows) for row in written),
        rated=sum(len(row.query.clip_ids) for row in written),
        quirks={**dict(sorted(quirks.items())), **({REPEATED: repeated} if repeated else {})},
    )


def _write(out: Path, report: PrepareReport, splits: Mapping[str, Sequence[Row]]) -> None:
    # The report comes first, so that the next call recognises the files of a killed one. train.jsonl comes last, so that
    # nothing is trained on an incomplete output.
    contents = {
        _REPORT: json.dumps(report.data(), indent=2, ensure_ascii=False) + "\n",
        _SETTINGS: benchmark_settings(report.benchmark).read_text(encoding="utf-8"),
        _MISSING: "".join(f"{vid}\n" for vid in report.missing),
    }
    for split in reversed(list(splits)):
        rows = (to_row(row.query) for row in splits[split] if NO_WINDOW not in row.quirks)
        contents[f"{split}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        for name in _WRITTEN - {_REPORT}:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise CostlError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from error
    for name, content in contents.items():
        if content:
            publish(out / name, content.encode())

"""A benchmark's official annotation files in, this project's JSONL out: finds, reads, checks, splits, matches, writes."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from costl.benchmarks.common import LOST, Benchmark, Files, Layout, Reading, Row, Seconds, to_row
from costl.benchmarks.layouts import find_benchmark, find_layout
from costl.config_files import benchmark_settings
from costl.pipeline.errors import CostlError, UsageError, VideoError, some
from costl.pipeline.formats.files import publish
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.videos import find_videos

SPLITS = ("train", "val", "test")
REPEATED = "rows that repeat another one, kept"
MADE_BY = "costl prepare"
_REPORT, _SETTINGS, _MISSING = "report.json", "costl.yaml", "missing.txt"
_NOT_HERE = "its video is not here"  # in an error of a reader: it needs this video's duration
_OURS = {_REPORT, _SETTINGS, _MISSING, *(f"{split}.jsonl" for split in SPLITS)}


@dataclass(frozen=True)
class SplitReport:
    """One split as written: how much there is of what, and by name how often something was put right."""

    rows: int
    videos: int
    missing: tuple[str, ...]
    windows: int
    rated: int
    quirks: Mapping[str, int]


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did: `sources` and their sha256, each split, what a person should know (`notes`), the folder
    `out` that it wrote, and the folder of `videos`."""

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
        """Videos that the annotations speak of and that are not there, sorted."""
        return tuple(sorted({vid for split in self.splits.values() for vid in split.missing}))

    def data(self) -> dict[str, Any]:
        """What report.json says; of missing videos how many, as missing.txt names them."""
        splits = {name: asdict(split) | {"missing": len(split.missing)} for name, split in self.splits.items()}
        fields = {name: value for name, value in asdict(self).items() if name not in ("out", "videos")}
        return {"made_by": MADE_BY, **fields, "splits": splits}

    def messages(self) -> list[str]:
        """What was read, the notes, where the missing videos are listed, and the next command."""
        missing = [f"Videos that are not here: {self.out / _MISSING}"] if self.missing else []
        return [f"Read {', '.join(self.sources)}.", *self.notes, *missing, f"Next: {self.next_command()}"]

    def next_command(self) -> str:
        """The command that extracts these videos."""
        videos = shlex.quote(str(self.videos)) if self.videos else "DIR"
        more = " --allow-missing-videos" if self.missing else ""
        return f"costl extract --videos {videos} --annotations {shlex.quote(str(self.out))} --out {self.benchmark}.h5{more}"

    def lines(self) -> list[str]:
        """The report for a terminal: a row for each thing counted, a column for each split."""
        rows: dict[str, list[int]] = {
            "rows": [split.rows for split in self.splits.values()],
            "videos": [split.videos for split in self.splits.values()],
            "videos that are not here": [len(split.missing) for split in self.splits.values()],
            "windows": [split.windows for split in self.splits.values()],
            "rated clips": [split.rated for split in self.splits.values()],
        }
        for quirk in dict.fromkeys(quirk for split in self.splits.values() for quirk in split.quirks):
            rows[quirk] = [split.quirks.get(quirk, 0) for split in self.splits.values()]
        shown = {name: counts for name, counts in rows.items() if any(counts)}
        width = max(len(self.title), *map(len, shown))
        lines = [f"{self.title:{width}}" + "".join(f"{split:>10}" for split in self.splits)]
        return lines + [f"{name:{width}}" + "".join(f"{n:>10}" for n in row) for name, row in shown.items()]


def prepare(
    name: str,
    *,
    annotations: Path,
    out: Path,
    videos: Path | None = None,
    allow_missing_videos: bool = False,
    val_share: float | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> PrepareReport:
    """Writes {train,val,test}.jsonl, costl.yaml and report.json of a benchmark into the folder `out`.

    `annotations` is the folder that holds the official files, or one of them where there are several kinds. `videos`
    is the folder of the videos; with `allow_missing_videos` it may be left out or hold none, and the rows of videos that
    are not there are written, too, and these listed in missing.txt. A folder that does not exist is always refused: its
    name is probably mistyped. Where the benchmark has no validation split, `val_share` of the training videos are held
    out: a hash of `seed` and the video's name decides, so that another video changes none. The same input gives the same
    bytes. Raises UsageError for a name, folder, file or row that is not what it should be, naming file and line, for
    missing videos, and where `out` holds something else.
    """
    benchmark = find_benchmark(name)
    share = _share(benchmark, val_share)
    _claim(out, benchmark)
    if videos is None and not allow_missing_videos:
        raise UsageError("--videos is missing: the folder of the videos. Without them, pass --allow-missing-videos.")
    layout, files = find_layout(benchmark, annotations)
    file_of = _File(benchmark, _files_by_stem(videos, allow_none=allow_missing_videos))
    reading = _read(layout, files, _lengths(file_of, progress or (lambda _: None)), videos=videos)
    splits, notes = _split(benchmark, reading, share=share, seed=seed)
    report = PrepareReport(
        benchmark=benchmark.name,
        title=benchmark.title,
        sources={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()},
        options={"val_share": share, "seed": seed, "allow_missing_videos": allow_missing_videos},
        splits={split: _counted(rows, file_of) for split, rows in splits.items()},
        notes=(*reading.notes, *notes),
        out=out,
        videos=videos,
    )
    if report.missing and not allow_missing_videos:
        raise UsageError(_absent(videos, report, len({row.query.vid for rows in splits.values() for row in rows})))
    _write(out, report, {split: [file_of.named(row) for row in rows] for split, rows in splits.items()})
    return report


def _files_by_stem(videos: Path | None, *, allow_none: bool) -> dict[str, Path]:
    if videos is None:
        return {}
    return {video.path.stem: video.path for video in find_videos(videos, allow_none=allow_none)}


def _read(layout: Layout, files: Files, seconds: Seconds, *, videos: Path | None) -> Reading:
    """What the files say. An error about the duration of a video that is not there says what to do as well."""
    try:
        return layout.read(files, seconds)
    except UsageError as error:
        if _NOT_HERE not in str(error):
            raise
        remedy = "Pass --videos with the folder of the videos" if videos is None else f"Add these videos to {videos}"
        raise UsageError(
            f"{error}\nWhere the annotations have no durations, these come from the videos. {remedy}, or add the files "
            "that have the durations."
        ) from error


class _File:
    """Which file is the video of a name, among those found by their stems."""

    def __init__(self, benchmark: Benchmark, found: Mapping[str, Path]):
        self._stems, self._found = benchmark.stems, found

    def __call__(self, vid: str) -> Path | None:
        """Its path, None where it is not there."""
        return next((self._found[stem] for stem in self._stems(vid) if stem in self._found), None)

    def named(self, row: Row) -> Row:
        """The row, its video called as the file is, which is what extraction goes by."""
        path = self(row.query.vid)
        return replace(row, query=replace(row.query, vid=path.stem if path else row.query.vid))


def _lengths(file_of: _File, tell: Tell) -> Seconds:
    count = 0

    @cache
    def seconds(vid: str) -> float:
        from costl.pipeline.decode.backends import open_video

        nonlocal count
        path = file_of(vid)
        if path is None:
            raise VideoError(f"{vid}: {_NOT_HERE}.")
        count += 1
        tell(Progress("durations", count, count, path.name))
        with open_video(path) as video:
            return video.duration_s

    return seconds


def _share(benchmark: Benchmark, asked: float | None) -> float:
    if asked is None:
        return benchmark.val_share or 0.0
    if benchmark.val_share is None:
        raise UsageError(f"--val-share: {benchmark.title} has a validation split of its own. Leave it out.")
    if not (math.isfinite(asked) and 0 <= asked < 1):
        raise UsageError(f"--val-share is {asked}, expected 0 or more and below 1.")
    return asked


def _claim(out: Path, benchmark: Benchmark) -> None:
    """Refuses a place that holds anything but an earlier output of the same benchmark."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: a file, expected a folder to write to. Choose another --out.")
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    try:
        earlier = json.loads((out / _REPORT).read_text(encoding="utf-8")) if _REPORT in names else {}
    except (OSError, ValueError):
        earlier = {}
    ours = isinstance(earlier, dict) and earlier.get("made_by") == MADE_BY
    if names and not (ours and names <= _OURS):
        raise UsageError(
            f"{out}: holds files that {MADE_BY} did not write ({some(sorted(names - _OURS if ours else names))}). "
            "Choose another --out."
        )
    if ours and earlier.get("benchmark") != benchmark.name:
        raise UsageError(f"{out}: holds {earlier.get('title')}. Choose another --out for {benchmark.title}.")


def _split(
    benchmark: Benchmark, reading: Reading, *, share: float, seed: int
) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """The splits in their order, some training videos held out where asked, and what to say about it."""
    splits = {split: list(reading.splits[split]) for split in SPLITS if split in reading.splits}
    notes = []
    if benchmark.val_share is not None:
        held_out = [row for row in splits["train"] if _is_held_out(row.query.vid, share=share, seed=seed)]
        kept = [row for row in splits["train"] if not _is_held_out(row.query.vid, share=share, seed=seed)]
        notes.append(_about_validation(benchmark, held_out, share=share, seed=seed))
        splits = {"train": kept, **({"val": held_out} if held_out else {}), "test": splits["test"]}
    empty = [split for split, rows in splits.items() if not rows]
    if empty:
        raise UsageError(
            f"{benchmark.title}: no row for {', '.join(empty)}. Check the annotation files and --val-share."
        )
    return splits, (*notes, *_warnings(splits))


def _is_held_out(vid: str, *, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}:{vid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _about_validation(benchmark: Benchmark, held_out: Sequence[Row], *, share: float, seed: int) -> str:
    if share == 0:
        return f"val: none, {benchmark.val_why}. --val-share 0.1 would hold out a tenth of the training videos."
    if not held_out:
        return f"val: none, as no training video fell into the share of {share:g} with seed {seed}. Try another --seed."
    videos = len({row.query.vid for row in held_out})
    return f"val: {videos} training videos held out (share {share:g}, seed {seed}): {benchmark.val_why}."


def _warnings(splits: Mapping[str, Sequence[Row]]) -> list[str]:
    warnings = []
    lost = sum(LOST in row.quirks for row in splits["test"])
    if lost:
        # There is nothing to score them against; the peers that read frames drop them likewise.
        warnings.append(
            f"test: {lost} rows without a usable window are dropped, so this is not the published test split."
        )
    videos = {split: {row.query.vid for row in rows} for split, rows in splits.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = videos.get(one, set()) & videos.get(other, set())
        if shared:
            warnings.append(f"{one} and {other} share {len(shared)} videos: {some(sorted(shared))}.")
    return warnings


def _counted(rows: Sequence[Row], file_of: _File) -> SplitReport:
    kept = [row for row in rows if LOST not in row.quirks]
    videos = {row.query.vid for row in kept}
    quirks = Counter(quirk for row in rows for quirk in row.quirks)
    repeated = len(kept) - len({replace(row.query, qid=0) for row in kept})
    return SplitReport(
        rows=len(kept),
        videos=len(videos),
        missing=tuple(sorted(vid for vid in videos if file_of(vid) is None)),
        windows=sum(len(row.query.windows) for row in kept),
        rated=sum(len(row.query.clip_ids) for row in kept),
        quirks={**dict(sorted(quirks.items())), **({REPEATED: repeated} if repeated else {})},
    )


def _absent(videos: Path | None, report: PrepareReport, total: int) -> str:
    return (
        f"{videos}: {len(report.missing)} of {total} videos that {report.title} speaks of are not here: "
        f"{some(report.missing)}. Add them, or pass --allow-missing-videos to write all rows and a list of these."
    )


def _write(out: Path, report: PrepareReport, splits: Mapping[str, Sequence[Row]]) -> None:
    # The report comes first, so that what a killed run leaves is known as ours; train.jsonl last, without which nothing
    # can be trained on a half.
    contents = {
        _REPORT: json.dumps(report.data(), indent=2, ensure_ascii=False) + "\n",
        _SETTINGS: benchmark_settings(report.benchmark).read_text(encoding="utf-8"),
        _MISSING: "".join(f"{vid}\n" for vid in report.missing),
    }
    for split in reversed(list(splits)):
        rows = (to_row(row.query) for row in splits[split] if LOST not in row.quirks)
        contents[f"{split}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        for name in _OURS - {_REPORT}:
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise CostlError(f"{out}: cannot be written ({error.strerror}). Choose another --out.") from error
    for name, content in contents.items():
        if content:
            publish(out / name, content.encode())

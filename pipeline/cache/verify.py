"""Verifies that every part of a cache is unchanged, and that the videos are those it was made from, several at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import content_hash, find_videos

_CHECKS_AT_ONCE = 256  # that run or wait in the pool, so that memory does not grow with the number of videos

_Check = tuple[str, Path, Callable[[], None]]  # a name, the file, and the function that raises for a problem


@dataclass(frozen=True)
class Damage:
    """A damaged file: the `name` of its video ("(words)" for the words), its `path`, and the `problem`."""

    name: str
    path: Path
    problem: str

    def data(self) -> dict[str, str]:
        """The fields as JSON holds them."""
        return vars(self) | {"path": str(self.path)}


@dataclass(frozen=True)
class VerifyReport:
    """The number of files `checked`, and those that are `damaged`; of `videos` compared, those that have `changed`.

    `exit_code` is 3 when a file is damaged, 1 when a video has changed or is missing.
    """

    cache: Path
    checked: int
    damaged: tuple[Damage, ...] = ()
    videos: int = 0
    changed: tuple[Damage, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return CacheError.exit_code if self.damaged else int(bool(self.changed))

    def lines(self) -> list[str]:
        """What is damaged or has changed, then the counts."""
        problems = [*self.damaged, *self.changed]
        width = max((len(damage.name) for damage in problems), default=0)
        lines = [f"{damage.name:{width}}  {damage.problem}" for damage in problems]
        lines.append(f"{self.checked - len(self.damaged)} of {self.checked} files are whole.")
        if self.videos:
            unchanged = self.videos - len(self.changed)
            lines.append(f"{unchanged} of {self.videos} videos are those that were extracted.")
        return lines

    def data(self) -> dict[str, Any]:
        """All fields."""
        problems = {name: [damage.data() for damage in getattr(self, name)] for name in ("damaged", "changed")}
        return vars(self) | {"cache": str(self.cache)} | problems


def verify(
    path: Path,
    *,
    quick: bool = False,
    videos: Path | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> VerifyReport:
    """Checks every part of the cache at `path`, and its words.

    Each part must open, belong to this cache, have the shapes of its row and, by its checksum, every byte that was written.
    `quick` checks only its size and first bytes, which finds missing, truncated and foreign files, but not a flipped bit.
    `videos` is the folder that holds the videos now: each video is read in full and compared with the one that was
    extracted. `threads` (default: one a core) share the work. Raises CacheError when the index itself is damaged,
    UsageError for a folder without videos, and for features that were not made from videos.
    """
    report_progress = progress or (lambda _: None)
    reader = CacheReader(path)
    video_checks = _video_checks(reader, videos) if videos else []
    checks = [(name, reader.part_path(name), partial(reader.verify, name, quick=quick)) for name in reader.video_ids]
    checks.append(("(words)", reader.words_path, partial(reader.verify_words, quick=quick)))
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        damaged = _run_checks(pool, checks, "verify", report_progress)
        changed = _run_checks(pool, video_checks, "videos", report_progress)
    return VerifyReport(path, len(checks), damaged, len(video_checks), changed)


def _video_checks(reader: CacheReader, folder: Path) -> list[_Check]:
    """For every video with features, a check that its file in `folder` is the one that was extracted."""
    if reader.videos is None:
        raise UsageError(f"{reader.path}: its features were not made of videos by costl extract. Leave out --videos.")
    paths = {video.id: video.path for video in find_videos(folder)}
    rows = [row for row in reader.rows if row.ok]
    return [
        (row.name, paths.get(row.id, folder / row.name), partial(_check_video, row, paths.get(row.id), folder))
        for row in rows
    ]


def _check_video(row: VideoRow, path: Path | None, folder: Path) -> None:
    if path is None:
        raise CacheError(f"{row.name}: no such video in {folder}.")
    if content_hash(path) != row.content_hash:
        raise CacheError(f"{path}: has changed since it was extracted. Run costl extract again: it makes only that.")


def _run_checks(
    pool: ThreadPoolExecutor, checks: Sequence[_Check], stage: str, report_progress: ProgressCallback
) -> tuple[Damage, ...]:
    damaged: list[Damage] = []
    for start in range(0, len(checks), _CHECKS_AT_ONCE):
        some = checks[start : start + _CHECKS_AT_ONCE]
        problems = pool.map(_problem, [check for _, _, check in some])
        for number, ((name, path, _), problem) in enumerate(zip(some, problems, strict=True), start=start + 1):
            if problem:
                damaged.append(Damage(name, path, problem))
            report_progress(Progress(stage, number, len(checks), name))
    return tuple(damaged)


def _problem(check: Callable[[], None]) -> str:
    """The problem that a check finds; empty for none."""
    try:
        check()
    except (CacheError, VideoError) as error:
        return str(error)
    return ""

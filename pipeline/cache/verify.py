"""Verifies that every part of a cache is unchanged, and that the videos are those it was made from, several at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, UsageError, VideoError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import content_hash, find_videos

_MAX_SUBMITTED = 256  # checks that run or wait in the pool, ahead of the next result

_Check = tuple[str, Path, Callable[[], None]]  # a name, the file, and the function that raises for a problem


@dataclass(frozen=True)
class Damage:
    """A damaged file: the `name` of its video ("(words)" for the words), its `path`, and the `problem`."""

    name: str
    path: Path
    problem: str

    def data(self) -> dict[str, str]:
        """The fields as JSON holds them."""
        return {"name": self.name, "path": str(self.path), "problem": self.problem}


@dataclass(frozen=True)
class VerifyReport:
    """The number of files `checked`, and those that are `damaged`; of `videos` compared, those that have `changed`.

    `packed`: all files lie in one. `quick`: only sizes and first bytes were checked. `compared`: with a folder of videos.
    `exit_code` is 3 when a file is damaged, 1 when a video has changed or is missing.
    """

    cache: Path
    checked: int
    damaged: tuple[Damage, ...] = ()
    packed: bool = False
    videos: int = 0
    changed: tuple[Damage, ...] = ()
    quick: bool = False
    compared: bool = False

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return CacheError.exit_code if self.damaged else int(bool(self.changed))

    def lines(self) -> list[str]:
        """What is damaged or has changed, then the counts."""
        problems = [*self.damaged, *self.changed]
        width = max((len(damage.name) for damage in problems), default=0)
        lines = [f"{damage.name:{width}}  {damage.problem}" for damage in problems]
        whole = self.checked - len(self.damaged)
        unchanged = self.videos - len(self.changed)
        videos = [f"{unchanged} of {self.videos} videos are those that were extracted."] if self.videos else []
        return [*lines, f"{whole} of {self.checked} files are whole.", *videos]

    def data(self) -> dict[str, Any]:
        """What was checked and what is damaged; with `videos` also which of them have changed."""
        damaged = [damage.data() for damage in self.damaged]
        data = {"cache": str(self.cache), "checked": self.checked, "quick": self.quick, "damaged": damaged}
        if not self.compared:
            return data
        return data | {"videos": self.videos, "changed": [change.data() for change in self.changed]}

    def messages(self) -> list[str]:
        """How to repair damage."""
        if not self.damaged:
            return []
        if self.packed:
            return ["Copy the packed file again from where it was made, or pack its cache again."]
        return [
            "Delete the damaged files and run the same costl extract or costl data import again: it makes only these files."
        ]


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
    checks = [(name, reader.part_path(name), _part_check(reader, name, quick=quick)) for name in reader.video_ids]
    checks.append(("(words)", reader.words_path, lambda: reader.verify_words(quick=quick)))
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        damaged = _run_checks(pool, checks, "verify", report_progress)
        changed = _run_checks(pool, video_checks, "videos", report_progress)
    return VerifyReport(
        path,
        len(checks),
        damaged,
        packed=reader.pack_table is not None,
        videos=len(video_checks),
        changed=changed,
        quick=quick,
        compared=videos is not None,
    )


def _part_check(reader: CacheReader, name: str, *, quick: bool) -> Callable[[], None]:
    return lambda: reader.verify(name, quick=quick)


def _video_checks(reader: CacheReader, folder: Path) -> list[_Check]:
    """For every video with features, a check that its file in `folder` is the one that was extracted."""
    if reader.videos is None:
        raise UsageError(f"{reader.path}: its features were not made of videos by costl extract. Leave out --videos.")
    paths = {video.id: video.path for video in find_videos(folder)}
    checks: list[_Check] = []
    for row in reader.rows:
        if row.ok:
            path = paths.get(row.id)
            checks.append((row.name, path or folder / row.name, _video_check(row, path, folder)))
    return checks


def _video_check(row: VideoRow, path: Path | None, folder: Path) -> Callable[[], None]:
    def check() -> None:
        if path is None:
            raise CacheError(f"{row.name}: no such video in {folder}.")
        if content_hash(path) != row.content_hash:
            raise CacheError(
                f"{path}: has changed since it was extracted. Run costl extract again: it makes only that."
            )

    return check


def _run_checks(
    pool: ThreadPoolExecutor, checks: list[_Check], stage: str, report_progress: ProgressCallback
) -> tuple[Damage, ...]:
    damaged = []
    for number, ((name, path, _), problem) in enumerate(zip(checks, _problems(pool, checks), strict=True), start=1):
        if problem:
            damaged.append(Damage(name, path, problem))
        report_progress(Progress(stage, number, len(checks), name))
    return tuple(damaged)


def _problems(pool: ThreadPoolExecutor, checks: list[_Check]) -> Iterator[str]:
    """The problem that each check finds, in their order; empty for none."""
    futures = (pool.submit(_problem, check) for _, _, check in checks)
    submitted = list(islice(futures, _MAX_SUBMITTED))
    for future in futures:
        submitted.append(future)
        yield submitted.pop(0).result()
    yield from (future.result() for future in submitted)


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except (CacheError, VideoError) as error:
        return str(error)
    return ""

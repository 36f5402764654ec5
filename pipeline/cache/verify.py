"""Is every part of a cache still the one that was written, and every video the one it was made of? Several at once."""

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
from costl.pipeline.progress import Progress, Tell
from costl.pipeline.videos import content_hash, find_videos

_WAITING = 256  # checks that are handed out ahead of the one that is waited for


@dataclass(frozen=True)
class Damage:
    """A video's part (or the words), its file, and what is wrong with it."""

    name: str
    path: Path
    problem: str


@dataclass(frozen=True)
class Verification:
    """How many files were checked, and those that are damaged; `videos` were compared, those `changed` are not the same.

    `packed`: all of them lie in one. `quick`: only sizes and first bytes were checked. `compared`: with a folder of videos.
    `exit_code` is 3 when something is damaged, 1 when a video has changed or is missing.
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

    def messages(self) -> list[str]:
        """What to do about damage."""
        if not self.damaged:
            return []
        if self.packed:
            return ["Copy the packed file again from where it was made, or pack its cache again."]
        return [
            "Delete the damaged files and run the same costl extract or costl data import again: it makes only these files."
        ]

    def data(self) -> dict[str, Any]:
        """What was checked and what is damaged; with `videos` also which of them have changed."""
        data = {"cache": str(self.cache), "checked": self.checked, "quick": self.quick, "damaged": _rows(self.damaged)}
        return data | ({"videos": self.videos, "changed": _rows(self.changed)} if self.compared else {})

    def lines(self) -> list[str]:
        """What is damaged or has changed, then the counts."""
        problems = [*self.damaged, *self.changed]
        width = max((len(damage.name) for damage in problems), default=0)
        lines = [f"{damage.name:{width}}  {damage.problem}" for damage in problems]
        whole, same = self.checked - len(self.damaged), self.videos - len(self.changed)
        videos = [f"{same} of {self.videos} videos are those that were extracted."] if self.videos else []
        return [*lines, f"{whole} of {self.checked} files are whole.", *videos]


def _rows(damaged: tuple[Damage, ...]) -> list[dict[str, str]]:
    return [{"name": damage.name, "path": str(damage.path), "problem": damage.problem} for damage in damaged]


def verify(
    path: Path,
    *,
    quick: bool = False,
    videos: Path | None = None,
    threads: int | None = None,
    progress: Tell | None = None,
) -> Verification:
    """Checks every part of the cache at `path`, and its words.

    Each must open, be of this cache, have the shape its row says and, by its checksum, every byte that was written.
    `quick` looks at its size and first bytes alone, which finds what is missing, cut short or no part, but not a
    flipped bit. `videos` is the folder that holds the videos now: each is read in full and compared with the one that
    was extracted. `threads` (default: one a core) share the work. Raises CacheError when the index itself is damaged,
    UsageError for a folder without videos, and for features that were not made of videos.
    """
    tell, reader = progress or (lambda _: None), CacheReader(path)
    originals = _originals(reader, videos) if videos else []
    checks = [(name, reader.part_path(name), _check_of(reader, name, quick=quick)) for name in reader.video_ids]
    checks.append(("(words)", reader.words_path, lambda: reader.verify_words(quick=quick)))
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        damaged = _found(pool, checks, "verify", tell)
        changed = _found(pool, originals, "videos", tell)
    return Verification(
        path,
        len(checks),
        damaged,
        packed=reader.table is not None,
        videos=len(originals),
        changed=changed,
        quick=quick,
        compared=videos is not None,
    )


_Check = tuple[str, Path, Callable[[], None]]


def _found(pool: ThreadPoolExecutor, checks: list[_Check], stage: str, tell: Tell) -> tuple[Damage, ...]:
    found = []
    for number, ((name, path, _), problem) in enumerate(zip(checks, _problems(pool, checks), strict=True), start=1):
        if problem:
            found.append(Damage(name, path, problem))
        tell(Progress(stage, number, len(checks), name))
    return tuple(found)


def _originals(reader: CacheReader, folder: Path) -> list[_Check]:
    """For every video with features, whether its file in `folder` is the one they were made of."""
    if reader.videos is None:
        raise UsageError(f"{reader.path}: its features were not made of videos by costl extract. Leave out --videos.")
    files = {video.id: video.path for video in find_videos(folder)}
    rows = [row for row in reader.rows if row.ok]
    return [(row.name, files.get(row.id, folder / row.name), _same(row, files.get(row.id), folder)) for row in rows]


def _same(row: VideoRow, path: Path | None, folder: Path) -> Callable[[], None]:
    def check() -> None:
        if path is None:
            raise CacheError(f"{row.name}: no such video in {folder}.")
        if content_hash(path) != row.content_hash:
            raise CacheError(
                f"{path}: has changed since it was extracted. Run costl extract again: it makes only that."
            )

    return check


def _check_of(reader: CacheReader, name: str, *, quick: bool) -> Callable[[], None]:
    return lambda: reader.verify(name, quick=quick)


def _problems(pool: ThreadPoolExecutor, checks: list[_Check]) -> Iterator[str]:
    """What each check has to say, in their order; empty when all is well."""
    todo = (pool.submit(_problem, check) for _, _, check in checks)
    waiting = list(islice(todo, _WAITING))
    for future in todo:
        waiting.append(future)
        yield waiting.pop(0).result()
    yield from (future.result() for future in waiting)


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except (CacheError, VideoError) as error:
        return str(error)
    return ""

"""Verifies that every part of a cache is unchanged, several at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.pipeline.progress import Progress, ProgressCallback

_CHECKS_AT_ONCE = 256  # that run or wait in the pool, so that memory does not grow with the number of videos

_Check = tuple[str, Path, Callable[[], None]]  # a name, the file, and the function that raises for damage


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
    """The number of files `checked`, and those that are `damaged`; `exit_code` is 3 when there are any."""

    cache: Path
    checked: int
    damaged: tuple[Damage, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return CacheError.exit_code if self.damaged else 0

    def lines(self) -> list[str]:
        """What is damaged, then the counts."""
        width = max((len(damage.name) for damage in self.damaged), default=0)
        lines = [f"{damage.name:{width}}  {damage.problem}" for damage in self.damaged]
        return [*lines, f"{self.checked - len(self.damaged)} of {self.checked} files are whole."]

    def data(self) -> dict[str, Any]:
        """All fields."""
        return vars(self) | {"cache": str(self.cache), "damaged": [damage.data() for damage in self.damaged]}


def verify(
    path: Path, *, quick: bool = False, threads: int | None = None, progress: ProgressCallback | None = None
) -> VerifyReport:
    """Checks every part of the cache at `path`, and its words.

    Each part must open, belong to this cache, have the shapes of its row and, by its checksum, every byte that was written.
    `quick` checks only its size and first bytes, which finds missing, truncated and foreign files, but not a flipped bit.
    `threads` (default: one a core) share the work. Raises CacheError when the index itself is damaged.
    """
    report_progress = progress or (lambda _: None)
    reader = CacheReader(path)
    checks: list[_Check] = [
        (name, reader.part_path(name), partial(reader.verify, name, quick=quick)) for name in reader.video_ids
    ]
    checks.append(("(words)", reader.words_path, partial(reader.verify_words, quick=quick)))
    damaged: list[Damage] = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(checks), _CHECKS_AT_ONCE):
            some = checks[start : start + _CHECKS_AT_ONCE]
            problems = pool.map(_problem, [check for _, _, check in some])
            for number, ((name, file, _), problem) in enumerate(zip(some, problems, strict=True), start=start + 1):
                if problem:
                    damaged.append(Damage(name, file, problem))
                report_progress(Progress("verify", number, len(checks), name))
    return VerifyReport(path, len(checks), tuple(damaged))


def _problem(check: Callable[[], None]) -> str:
    """The problem that a check finds; empty for none."""
    try:
        check()
    except CacheError as error:
        return str(error)
    return ""

"""Is every part of a cache still the one that was written? Several are read at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.cache import CacheReader
from pipeline.errors import CacheError
from pipeline.progress import Progress, Tell

_WAITING = 256  # checks that are handed out ahead of the one that is waited for


@dataclass(frozen=True)
class Damage:
    """A video's part (or the words), its file, and what is wrong with it."""

    name: str
    path: Path
    problem: str


@dataclass(frozen=True)
class Verification:
    """How many files were checked, and those that are damaged. `exit_code` is 3 when there are any."""

    cache: Path
    checked: int
    damaged: tuple[Damage, ...] = ()

    @property
    def exit_code(self) -> int:
        """What the command returns."""
        return CacheError.exit_code if self.damaged else 0

    def table(self) -> str:
        """What is damaged, and a last line that counts."""
        width = max((len(damage.name) for damage in self.damaged), default=0)
        lines = [f"{damage.name:{width}}  {damage.problem}" for damage in self.damaged]
        whole = self.checked - len(self.damaged)
        return "\n".join([*lines, f"{whole} of {self.checked} files are whole."])


def verify(
    path: Path, *, quick: bool = False, threads: int | None = None, progress: Tell | None = None
) -> Verification:
    """Checks every part of the cache at `path`, and its words.

    Each must open, be of this cache, have the shape its row says and, by its checksum, every byte that was written.
    `quick` looks at its size and first bytes alone, which finds what is missing, cut short or no part, but not a
    flipped bit. `threads` (default: one a core) share the work. Raises CacheError when the index itself is damaged.
    """
    tell, reader = progress or (lambda _: None), CacheReader(path)
    checks = [(name, reader.part_path(name), _check_of(reader, name, quick=quick)) for name in reader.video_ids]
    checks.append(("(words)", reader.words_path, lambda: reader.verify_words(quick=quick)))
    damaged = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for number, ((name, part, _), problem) in enumerate(zip(checks, _problems(pool, checks), strict=True), start=1):
            if problem:
                damaged.append(Damage(name, part, problem))
            tell(Progress("verify", number, len(checks), name))
    return Verification(path, len(checks), tuple(damaged))


_Check = tuple[str, Path, Callable[[], None]]


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
    except CacheError as error:
        return str(error)
    return ""

"""Reads the planned batches ahead of the model: in a thread, or in processes of which each reads a batch of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from costl.data.batch import Planned, ahead, collate
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CostlError
from costl.pipeline.grid import Grid

AHEAD = 2  # batches that a process holds ready

Make = Callable[..., Any]  # called as `collate` is; gives a batch, or this process's shares of one


class Checked:
    """A cache that checks a video's part against its checksum before it gives of it for the first time."""

    def __init__(self, features: CacheReader):
        self._features = features
        self._whole: set[str] = set()
        self.fps: float = features.fps
        self.patch_grid: tuple[int, int] = features.patch_grid
        self.joint: Joint = features.joint

    def grid(self, video_id: str) -> Grid:
        """The cache's."""
        return self._features.grid(video_id)

    def tokens(self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        """The cache's. Raises CacheError naming a part that is damaged, gone or not the one that was indexed."""
        if patches and video_id not in self._whole:  # the frame tokens alone are a hundredth of what would be read
            self._features.verify(video_id)
            self._whole.add(video_id)
        return self._features.tokens(video_id, clips=clips, patches=patches)

    def words(self, query: str) -> Words:
        """The cache's."""
        return self._features.words(query)


class Loader:
    """The same batches in the same order, however many `workers` read them; 0 reads in a thread of this process.

    A context manager: the processes live until it is left. `pin` puts batches where a GPU fetches them by itself; `make`
    makes each, in whatever process.
    """

    def __init__(
        self, features: CacheReader, *, patches: bool, workers: int = 0, pin: bool = False, make: Make = collate
    ):
        self._path, self._workers, self._pin = features.path, workers, pin
        self._features, self._make = Checked(features), partial(make, patches=patches)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Loader:
        if self._workers:
            # Spawned, on every system alike: a fork of a process with threads may hang.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_begin)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, plan: Sequence[Planned]) -> Generator[Any, None, None]:
        """Raises CacheError as `Checked` does, CostlError when a process ends that should not."""
        here = (self._make(planned.queries, self._features, wrong=planned.wrong) for planned in plan)
        read = here if self._pool is None else self._from_processes(self._pool, plan)
        return ahead((batch.pin_memory() for batch in read) if self._pin else read)

    def _from_processes(self, pool: ProcessPoolExecutor, plan: Sequence[Planned]) -> Iterator[Any]:
        _leave_ctrl_c_to_the_main_thread()
        read, ready = partial(_read, self._path, self._make), AHEAD * self._workers
        try:
            waiting = deque(pool.submit(read, planned) for planned in plan[:ready])
            for planned in plan[ready:]:
                yield waiting.popleft().result()
                waiting.append(pool.submit(read, planned))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise CostlError(
                "A process that reads batches has ended by itself: killed, or out of memory (batches travel through "
                "/dev/shm on Linux). Set train.workers lower; 0 reads in a thread."
            ) from error


def _leave_ctrl_c_to_the_main_thread() -> None:
    # What a thread blocks, the processes that it starts block: Ctrl-C on a terminal reaches all of them.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _begin() -> None:
    """In a process: nothing but reading, and not longer than the training lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(1)
def _opened(path: Path) -> Checked:
    """The cache, opened by the process itself."""
    return Checked(CacheReader(path))


def _read(path: Path, make: Make, planned: Planned) -> Any:
    return make(planned.queries, _opened(path), wrong=planned.wrong)

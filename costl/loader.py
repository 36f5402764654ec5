"""Reads the planned batches ahead of the model: in a thread, or in processes of which each reads a batch of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path

import torch

from costl.dataset import Batch, Planned, ahead, collate
from pipeline.cache import CacheReader
from pipeline.errors import CostlError

AHEAD = 2  # batches that a process holds ready


class Reader:
    """Plan -> batch. The part of a video is checked against its checksum when it is read for the first time."""

    def __init__(self, features: CacheReader, *, patches: bool):
        self._features, self._patches = features, patches
        self._whole: set[str] = set()

    def __call__(self, planned: Planned) -> Batch:
        """Raises CacheError naming a part that is damaged, gone or not the one that was indexed."""
        for vid in {query.vid for query in planned.queries} - self._whole:
            self._features.verify(vid)
            self._whole.add(vid)
        return collate(planned.queries, self._features, patches=self._patches, wrong=planned.wrong)


class Loader:
    """The same batches in the same order, however many `workers` read them; 0 reads in a thread of this process.

    A context manager: the processes live until it is left. `pin` puts batches where a GPU fetches them by itself.
    """

    def __init__(self, features: CacheReader, *, patches: bool, workers: int = 0, pin: bool = False):
        self._path, self._patches, self._workers, self._pin = features.path, patches, workers, pin
        self._read = Reader(features, patches=patches)
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

    def batches(self, plan: Sequence[Planned]) -> Generator[Batch, None, None]:
        """Raises CacheError as `Reader` does, CostlError when a process ends that should not."""
        read = map(self._read, plan) if self._pool is None else self._from_processes(self._pool, plan)
        return ahead(map(Batch.pin_memory, read) if self._pin else read)

    def _from_processes(self, pool: ProcessPoolExecutor, plan: Sequence[Planned]) -> Iterator[Batch]:
        _leave_ctrl_c_to_the_main_thread()
        read, ready = partial(_read, self._path, self._patches), AHEAD * self._workers
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
def _reader(path: Path, patches: bool) -> Reader:
    """The cache, opened by the process itself."""
    return Reader(CacheReader(path), patches=patches)


def _read(path: Path, patches: bool, planned: Planned) -> Batch:
    return _reader(path, patches)(planned)

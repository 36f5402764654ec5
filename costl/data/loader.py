"""The loader: reads planned batches ahead of the model, in a thread or in worker processes."""

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

from costl.data.batch import collate
from costl.data.sampler import PlannedBatch, prefetch
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.errors import CostlError
from costl.pipeline.grid import Grid

PREFETCHED_BATCHES = 2  # that each worker has read or is reading

Collate = Callable[..., Any]  # with the parameters of `collate`; returns a batch or the micro-batches of this process


class VerifiedCache:
    """A cache that compares the part of a video with its checksum before it returns tokens of it for the first time."""

    def __init__(self, features: CacheReader):
        self._features = features
        self._verified: set[str] = set()
        self.fps: float = features.fps
        self.patch_grid: tuple[int, int] = features.patch_grid
        self.joint: JointSpace = features.joint

    def grid(self, video_id: str) -> Grid:
        """The grid of a video in the cache."""
        return self._features.grid(video_id)

    def tokens(self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        """The tokens of a video in the cache.

        Raises CacheError naming a part that is damaged, missing or not the one in the index. Without `patches` nothing is
        verified: that would read a hundred times as much as the frame tokens.
        """
        if patches and video_id not in self._verified:
            self._features.verify(video_id)
            self._verified.add(video_id)
        return self._features.tokens(video_id, clips=clips, patches=patches)

    def words(self, query: str) -> SentenceTokens:
        """The words of a query in the cache."""
        return self._features.words(query)


class Loader:
    """Reads batches with `workers` processes, or in a thread of this process with 0. Order and batches are the same.

    A context manager: the workers end when it is left. `pin` puts batches into pinned memory, which a GPU reads while the
    host goes on. `collate_batch` makes each batch, in the process that reads it.
    """

    def __init__(
        self,
        features: CacheReader,
        *,
        patches: bool,
        workers: int = 0,
        pin: bool = False,
        collate_batch: Collate = collate,
    ):
        self._path = features.path
        self._workers = workers
        self._pin = pin
        self._features = VerifiedCache(features)
        self._collate = partial(collate_batch, patches=patches)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Loader:
        if self._workers:
            # Spawned on every system: a fork of a process with threads may hang.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batches(self, plan: Sequence[PlannedBatch]) -> Generator[Any, None, None]:
        """The batches of `plan` in its order.

        Raises CacheError as `VerifiedCache` does, CostlError when a worker was killed.
        """
        batches = self._read_in_thread(plan) if self._pool is None else self._read_in_workers(self._pool, plan)
        return prefetch((batch.pin_memory() for batch in batches) if self._pin else batches)

    def _read_in_thread(self, plan: Sequence[PlannedBatch]) -> Iterator[Any]:
        for planned in plan:
            yield self._collate(planned.queries, self._features, negative_pairs=planned.negative_pairs)

    def _read_in_workers(self, pool: ProcessPoolExecutor, plan: Sequence[PlannedBatch]) -> Iterator[Any]:
        _block_ctrl_c_in_this_thread()
        read = partial(_read_batch, self._path, self._collate)
        prefetched = PREFETCHED_BATCHES * self._workers
        try:
            pending = deque(pool.submit(read, planned) for planned in plan[:prefetched])
            for planned in plan[prefetched:]:
                yield pending.popleft().result()
                pending.append(pool.submit(read, planned))
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise CostlError(
                "A worker that reads batches ended unexpectedly: it was killed or out of memory (on Linux, batches are "
                "passed through /dev/shm). Set train.workers lower; 0 reads in a thread."
            ) from error


def _block_ctrl_c_in_this_thread() -> None:
    # The workers that this thread starts inherit the block. Ctrl-C on a terminal reaches all of them.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _start_worker() -> None:
    """In a worker: ignores Ctrl-C, uses one thread, and ends with the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@lru_cache(1)
def _open_cache(path: Path) -> VerifiedCache:
    """The cache as a worker opened it, once."""
    return VerifiedCache(CacheReader(path))


def _read_batch(path: Path, collate_batch: Collate, planned: PlannedBatch) -> Any:
    return collate_batch(planned.queries, _open_cache(path), negative_pairs=planned.negative_pairs)

"""The loader: reads planned batches ahead of the model, in a thread or in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from costl.data.batch import Batch, collate, own_videos, video_ids
from costl.data.sampler import PlannedBatch
from costl.model.inputs import map_tensors
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CostlError
from costl.pipeline.processes import NewProcesses

T = TypeVar("T")


class PlannedBatches(Dataset[Batch | CostlError]):
    """The batches of a cache, indexed by their plan.

    The part of a video is compared with its checksum before its tokens are read for the first time. Without `patches`
    nothing is verified: that would read a hundred times as much as the frame tokens. An error is the item in place of the
    batch, since DataLoader would change its message.
    """

    def __init__(self, features: CacheReader, *, patches: bool, rank: int, world_size: int):
        self._features = features
        self._patches = patches
        self._rank = rank
        self._world_size = world_size
        self._verified: set[str] = set()

    def __getitem__(self, planned: PlannedBatch) -> Batch | CostlError:
        try:
            self._verify(planned)
            batch = collate(
                planned.queries,
                self._features,
                patches=self._patches,
                negative_pairs=planned.negative_pairs,
                parts=planned.parts,
                rank=self._rank,
                world_size=self._world_size,
            )
            return batch if get_worker_info() is None else _in_shared_memory(batch)
        except CostlError as error:
            return error

    def _verify(self, planned: PlannedBatch) -> None:
        vids = video_ids(planned.queries)
        own = own_videos(len(vids), self._rank, self._world_size) if self._patches else []
        read = {vids[v] for v in own} | {vids[part.video] for v in own for parts in planned.parts[v : v + 1] for part in parts}
        for vid in sorted(read - self._verified):
            self._features.verify(vid)
            self._verified.add(vid)


def _in_shared_memory(batch: Batch) -> Batch:
    """The same batch where the main process can read it.

    Raises CostlError if there is no room for it. DataLoader itself would lose the batch and wait for it for ever.
    """
    try:
        return map_tensors(batch, lambda tensor: tensor.share_memory_() if tensor.numel() else tensor)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2]
        raise CostlError(
            f"A batch does not fit into shared memory ({reason}), through which workers pass it. Set train.workers=0, which "
            "reads in a thread, or give the machine more of it (/dev/shm on Linux; docker run --shm-size=8g)."
        ) from error


class Loader:
    """Reads batches with `workers` processes, or in a thread of this process with 0. Order and batches are the same.

    A context manager: the workers end when it is left. `pin` puts batches into pinned memory, which a GPU reads while the
    host goes on. Process `rank` of `world_size` reads its share of each batch.
    """

    def __init__(
        self,
        features: CacheReader,
        *,
        patches: bool,
        workers: int = 0,
        pin: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._plan: list[PlannedBatch] = []
        self._batches: DataLoader[Batch | CostlError] | None = DataLoader(
            PlannedBatches(features, patches=patches, rank=rank, world_size=world_size),
            batch_size=None,
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            # Not forked on any system: a fork of a process with threads may hang.
            multiprocessing_context=NewProcesses() if workers else None,
            # DataLoader would otherwise draw from the global generator, which decides dropout.
            generator=torch.Generator(),
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches = None  # which ends its workers

    def batches(self, plan: Sequence[PlannedBatch]) -> Generator[Batch, None, None]:
        """The batches of `plan` in its order.

        Raises CacheError for a part that is damaged, missing or not the one in the index, CostlError when a worker was
        killed.
        """
        self._plan[:] = plan
        return prefetch(self._read())

    def _read(self) -> Generator[Batch, None, None]:
        assert self._batches is not None, "the loader is open"
        # Workers inherit the block from this thread, also while they start. Ctrl-C on a terminal reaches all processes.
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for batch in self._batches:
                if isinstance(batch, CostlError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise CostlError(
                "A worker that reads batches ended unexpectedly: it was killed or out of memory (on Linux, batches are "
                "passed through /dev/shm). Set train.workers lower; 0 reads in a thread."
            ) from error


def prefetch(items: Iterable[T], count: int = 2) -> Generator[T, None, None]:
    """The same items; a thread prepares up to `count` of them while the caller works."""
    iterator = iter(items)
    thread = ThreadPoolExecutor(1)
    try:
        pending = [thread.submit(next, iterator, None) for _ in range(count)]
        while (item := pending.pop(0).result()) is not None:
            pending.append(thread.submit(next, iterator, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)  # waits for one item at most

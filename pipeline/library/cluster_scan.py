"""The scan of a library on an existing Dask cluster: each task compares sentences with a shard of the search file.

A shard is a range of videos. A worker reads it from the file, which is on shared storage, and returns what a merge needs:
the best videos of the shard for each sentence, or the highest similarity in each video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.library.best_videos import (
    SIMILARITIES_AT_ONCE,
    BestVideo,
    LocalScan,
    Report,
    Scan,
    cut_by_clips,
    merge,
)
from costl.pipeline.library.cluster_scan_worker import BestOfShard, Shard, scan_best, scan_highest
from costl.pipeline.library.vectors import Vectors
from costl.pipeline.run.cluster_client import connect, results, run_on_all, worker_threads
from costl.pipeline.run.cluster_worker import check_versions, versions

SMALLEST_BYTES = 32 << 20  # of a shard
LARGEST_BYTES = 256 << 20  # the part of a file that a worker has mapped counts as its memory
_SHARDS_OF_A_THREAD = 4  # so that a fast worker takes more of them than a slow one
_POLL_S = 0.002


def open_scan(cluster: str | None) -> Scan:
    """A scan by the workers of the scheduler at this address, or by this machine. Raises as `ClusterScan.check` does."""
    if cluster is None:
        return LocalScan()
    scan = ClusterScan(cluster)
    scan.check()
    return scan


class ClusterScan:
    """A `best_videos.Scan` by the workers of the scheduler at `address`. Other workers repeat what a lost one had.

    All methods raise UsageError where no scheduler answers or it has no workers, and with the name of a worker that has
    other versions or does not see the search file; CostlError if the scheduler or all workers are lost.
    """

    def __init__(self, address: str):
        self._address = address

    def check(self) -> None:
        """Raises UsageError where no scheduler answers or it has no workers."""
        with connect(self._address) as client:
            worker_threads(client)

    def best_videos(self, vectors: Vectors, sentences: np.ndarray, count: int) -> Iterator[list[BestVideo]]:
        """See `Scan`."""
        group = _sentences_at_once(vectors, count)
        for start in range(0, len(sentences), group):
            some = sentences[start : start + group]
            best: list[list[BestVideo]] = [[] for _ in some]
            for shard_start, found in self._scan(scan_best, vectors, some, count=count):
                best = [merge(*both, count) for both in zip(best, _unpack(found, shard_start, vectors), strict=True)]
            yield from best

    def highest(self, vectors: Vectors, sentences: np.ndarray, report: Report) -> np.ndarray:
        """See `Scan`."""
        result = np.empty((len(vectors.keys), len(sentences)), np.float32)
        done = 0
        for start, levels in self._scan(scan_highest, vectors, sentences):
            report(done)
            result[start : start + len(levels)] = levels
            done += len(levels)
        return result

    def _scan(
        self, function: Callable[..., Any], vectors: Vectors, sentences: np.ndarray, **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """(index of the first video of a shard, `function(shard, ...)`) in the order they arrive."""
        path = _file_of(vectors)
        # Not as keywords of `map`: Dask would store a large one under its name alone, the same for all scans of a cluster.
        compare = partial(
            function, sentences=sentences.astype(np.float16), client_versions=self._versions, **options
        )
        with connect(self._address) as client:
            shards = _shards(vectors, path, len(sentences), threads=sum(worker_threads(client).values()))
            try:
                yield from results(client, client.map(compare, shards, pure=False), poll_s=_POLL_S, remedy="Search again.")
            except CostlError:
                _refuse_replaced_file(path)
                raise
            except Exception:  # whatever the Python of a worker could not import
                for _ in run_on_all(client, check_versions, self._versions):
                    pass
                raise

    @cached_property
    def _versions(self) -> dict[str, str]:
        return versions()


def _sentences_at_once(vectors: Vectors, count: int) -> int:
    """So many that neither the curves of the best videos nor the similarities with a shard take much memory."""
    longest = int(np.sort(vectors.clips)[-count:].sum())
    return max(1, SIMILARITIES_AT_ONCE // max(longest, LARGEST_BYTES // (2 * vectors.width)))


def _shards(vectors: Vectors, path: Path, sentences: int, *, threads: int) -> list[Shard]:
    row_bytes = 2 * vectors.width
    wanted = vectors.total_clips * row_bytes // (threads * _SHARDS_OF_A_THREAD)
    most = min(max(wanted, SMALLEST_BYTES), LARGEST_BYTES) // row_bytes
    return [
        Shard(path, vectors.array.shape, start, vectors.rows[start:end], vectors.clips[start:end])
        for start, end in cut_by_clips(vectors.clips, min(most, SIMILARITIES_AT_ONCE // sentences))
    ]


def _file_of(vectors: Vectors) -> Path:
    assert vectors.path is not None, "vectors in memory cannot be read by workers"
    return vectors.path.resolve()


def _refuse_replaced_file(path: Path) -> None:
    """The mapping of a file that was removed remains here, but nobody else can open it."""
    if not path.exists():
        raise CacheError(f"{path}: another process has replaced it since the library was opened. Open the library again.")


def _unpack(found: BestOfShard, start: int, vectors: Vectors) -> Iterator[list[BestVideo]]:
    """The best videos of a shard for each sentence, by their indices in the whole library."""
    for indices, levels, curves in zip(found.indices + start, found.levels.tolist(), found.curves, strict=True):
        # Copies, so that one curve does not keep all of them in memory.
        own = [part.copy() for part in np.split(curves, np.cumsum(vectors.clips[indices])[:-1])]
        yield [BestVideo(*video) for video in zip(indices.tolist(), levels, own, strict=True)]

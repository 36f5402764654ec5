"""What runs on a worker of a cluster: it compares sentences with a shard of a search file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.library.best_videos import best_of_row, highest_of_videos
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors, map_rows
from costl.pipeline.run.cluster_worker import check_versions

_REMEDY = "The index of the library must be on storage that this machine and all workers share."


@dataclass(frozen=True)
class Shard:
    """Videos [start, start + v) of a library, and where a worker finds their vectors.

    `path`: the file, as a full path. `shape`: that of its vectors, (rows, e). `rows`: the first row of each video, int64 [v].
    `clips`: how many it has, int64 [v].
    """

    path: Path
    shape: tuple[int, ...]
    start: int
    rows: np.ndarray
    clips: np.ndarray


@dataclass(frozen=True)
class BestOfShard:
    """The best videos of a shard for each sentence, in few arrays, which are sent faster than many.

    `indices`: of the videos in the shard, int64 [q k]. `levels`: float64 [q k]. `curves`: those of the k videos joined,
    float32 for each sentence.
    """

    indices: np.ndarray
    levels: np.ndarray
    curves: list[np.ndarray]


def scan_best(
    shard: Shard, *, sentences: np.ndarray, count: int, client_versions: Mapping[str, str]
) -> tuple[int, BestOfShard]:
    """The start of the shard, and its best videos for `sentences`, float16 [q e], as `best_videos.Scan` has them.

    Raises UsageError with the name of the worker for one that has other versions or does not see the file.
    """
    vectors = _open(shard, client_versions)
    best = [best_of_row(row, vectors, count) for row in similarities(vectors, sentences, threads=1)]
    indices = np.array([[video.index for video in videos] for videos in best], np.int64)
    levels = np.array([[video.level for video in videos] for videos in best])
    return shard.start, BestOfShard(indices, levels, [np.concatenate([video.curve for video in videos]) for videos in best])


def scan_highest(
    shard: Shard, *, sentences: np.ndarray, client_versions: Mapping[str, str]
) -> tuple[int, np.ndarray]:
    """The start of the shard, and the highest similarities of its videos, float32 [v q]. Raises as `scan_best` does."""
    return shard.start, highest_of_videos(_open(shard, client_versions), sentences, threads=1)


def _open(shard: Shard, client_versions: Mapping[str, str]) -> Vectors:
    from distributed import get_worker

    try:
        _check_versions(tuple(client_versions.items()))
        rows, width = shard.shape
        array = map_rows(shard.path, rows=rows, width=width, remedy=_REMEDY)
    except (CacheError, UsageError) as error:
        raise UsageError(f"worker {get_worker().address}: {error}") from error
    videos = len(shard.rows)
    return Vectors(array, ("",) * videos, shard.rows, shard.clips, np.zeros(videos), fps=1.0)


@functools.cache
def _check_versions(client_versions: tuple[tuple[str, str], ...]) -> None:
    """Once in the life of a worker for each client."""
    check_versions(dict(client_versions))

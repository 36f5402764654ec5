"""What a search needs of a scan: the best videos for each sentence, and the highest similarity in each video.

`LocalScan` computes it on this machine and `cluster_scan.ClusterScan` on several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors

SIMILARITIES_AT_ONCE = 32_000_000  # 128 MB
_SENTENCES_AT_ONCE = 4  # at least: a library that memory does not hold is read from the disk for each group of sentences
Report = Callable[[int], None]  # called with the number of videos that are done


@dataclass(frozen=True)
class BestVideo:
    """A video by its index, and the similarity of a sentence with each of its clips, float32 [t]. `level`: the highest."""

    index: int
    level: float
    curve: np.ndarray


class Scan(Protocol):
    """Compares sentences, float32 [q e], with all clips of `vectors`; see `scan.similarities`."""

    def best_videos(self, vectors: Vectors, sentences: np.ndarray, count: int) -> Iterator[list[BestVideo]]:
        """For each sentence at most `count` videos, that with the highest level first; of equal ones that of lower index."""

    def highest(self, vectors: Vectors, sentences: np.ndarray, report: Report) -> np.ndarray:
        """The similarity of each sentence with the most similar clip of each video, float32 [v q]."""


class LocalScan:
    """A `Scan` on all cores of this machine."""

    def best_videos(self, vectors: Vectors, sentences: np.ndarray, count: int) -> Iterator[list[BestVideo]]:
        """See `Scan`."""
        group = max(_SENTENCES_AT_ONCE, SIMILARITIES_AT_ONCE // vectors.total_clips)
        for start in range(0, len(sentences), group):
            for row in similarities(vectors, sentences[start : start + group]):
                yield best_of_row(row, vectors, count)

    def highest(self, vectors: Vectors, sentences: np.ndarray, report: Report) -> np.ndarray:
        """See `Scan`."""
        result = np.empty((len(vectors.keys), len(sentences)), np.float32)
        for start, end in cut_by_clips(vectors.clips, SIMILARITIES_AT_ONCE // len(sentences)):
            report(start)
            result[start:end] = highest_of_videos(vectors.select(range(start, end)), sentences)
        return result


def best_of_row(row: np.ndarray, vectors: Vectors, count: int) -> list[BestVideo]:
    """The best videos by the similarities of a sentence with all clips, float32 [n], as `Scan.best_videos`."""
    levels = np.maximum.reduceat(row, vectors.starts)
    indices = np.argsort(-levels, kind="stable")[:count].tolist()
    starts, clips = vectors.starts, vectors.clips
    return [BestVideo(index, float(levels[index]), row[starts[index] :][: clips[index]]) for index in indices]


def highest_of_videos(vectors: Vectors, sentences: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """As `Scan.highest`, all videos at once."""
    return np.maximum.reduceat(similarities(vectors, sentences, threads=threads), vectors.starts, axis=1).T


def merge(one: list[BestVideo], other: list[BestVideo], count: int) -> list[BestVideo]:
    """The best `count` of two lists, in the order of `Scan.best_videos`."""
    return sorted(one + other, key=lambda video: (-video.level, video.index))[:count]


def cut_by_clips(clips: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Ranges of videos that have at most `most` clips together, or are one video. `clips`: of each video, int64 [v]."""
    ranges = []
    start = size = 0
    for index, count in enumerate(clips.tolist()):
        if index > start and size + count > most:
            ranges.append((start, index))
            start, size = index, 0
        size += count
    return [*ranges, (start, len(clips))] if len(clips) else []

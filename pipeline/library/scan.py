"""Exact similarities of sentences with all clips of a library, by every core of the CPU.

The scan runs at about the speed at which memory can be read. Hence it needs no approximate index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from costl.pipeline.library.vectors import Vectors
from costl.pipeline.processes import cpu_cores

_BLOCK_BYTES = 1 << 20  # of vectors: several sentences are compared with a block while it is in the cache of the core
_BLOCKS_OF_A_TASK = 16
_SENTENCES_OF_A_PASS = 32
_Block = Callable[[int, int], np.ndarray]


def similarities(vectors: Vectors, sentences: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """The dot products of `sentences`, float32 [q e], with all clips in the order of `vectors.starts`, float32 [q n].

    Both sides have length one, so a dot product is the cosine. Sentences are rounded to float16, as the vectors are; the
    products of these values are summed in float32, within 1e-6 of their sums in float64. The rounding of a sentence
    changes a similarity by 1e-5 on average and by 5e-4 at most. The result needs 4 bytes for each clip and sentence:
    compare many sentences in groups. `threads`: by default one for each core.
    """
    assert sentences.ndim == 2 and sentences.shape[1] == vectors.width, sentences.shape
    result = np.empty((len(sentences), vectors.total_clips), np.float32)
    if not result.size:
        return result
    compare = _comparison(vectors.array, np.ascontiguousarray(sentences, np.float16))

    def fill(task: tuple[int, int, int]) -> None:
        row, position, clips = task
        compare(row, row + clips, result[:, position : position + clips])

    with ThreadPoolExecutor(threads or cpu_cores()) as pool:
        list(pool.map(fill, _tasks(vectors)))
    return result


def _comparison(array: np.ndarray, sentences: np.ndarray) -> Callable[[int, int, np.ndarray], None]:
    """A function that writes the similarities [q t] of the rows [row, end) of `array` to its third argument."""
    import numkong

    rows_of_block = max(1, _BLOCK_BYTES // (2 * array.shape[1]))

    def compare_one(row: int, end: int, result: np.ndarray) -> None:
        result[:] = numkong.cdist(sentences, array[row:end], "dot")

    def compare_many(row: int, end: int, result: np.ndarray) -> None:
        for start in range(row, end, rows_of_block):
            block = array[start : min(start + rows_of_block, end)]
            columns = slice(start - row, start - row + len(block))
            _load(block)
            for queries, packed in packs:
                result[queries, columns] = np.asarray(numkong.dots_packed(block, packed)).T

    if len(sentences) == 1:
        return compare_one
    passes = [slice(start, start + _SENTENCES_OF_A_PASS) for start in range(0, len(sentences), _SENTENCES_OF_A_PASS)]
    packs = [(queries, numkong.dots_pack(sentences[queries])) for queries in passes]
    return compare_many


def _load(block: np.ndarray) -> None:
    """Reads a block once, which brings it into the cache of the core faster than a matrix product does."""
    if block.shape[1] % 4 == 0:
        np.bitwise_or.reduce(block.view(np.uint64), axis=None)


def _tasks(vectors: Vectors) -> Iterator[tuple[int, int, int]]:
    """Runs of rows that follow each other, cut to a few blocks: (first row, position of its result, clips)."""
    if not len(vectors.keys):
        return
    follows = vectors.rows[1:] == vectors.rows[:-1] + vectors.clips[:-1]
    first = np.flatnonzero(np.concatenate([[True], ~follows]))
    clips_of_run = np.add.reduceat(vectors.clips, first)
    most = max(1, _BLOCKS_OF_A_TASK * _BLOCK_BYTES // (2 * vectors.width))
    columns = (vectors.rows[first], vectors.starts[first], clips_of_run)
    for row, position, clips in zip(*(column.tolist() for column in columns), strict=True):
        for offset in range(0, clips, most):
            yield row + offset, position + offset, min(most, clips - offset)

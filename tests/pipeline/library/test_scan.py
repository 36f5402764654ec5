"""Similarities are exact, for any number of sentences and threads, in any order of the videos, without rows that are dead."""

from __future__ import annotations

import numpy as np
import pytest

from costl.pipeline.library import scan
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors

RNG = np.random.default_rng(5)


def unit_rows(count: int, width: int) -> np.ndarray:
    values = RNG.normal(size=(count, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def make_vectors(extents: list[tuple[int, int]], *, rows: int = 40, width: int = 8) -> Vectors:
    """Videos with these (first row, clips) in a file of random vectors."""
    array = unit_rows(rows, width).astype(np.float16)
    array.flags.writeable = False
    first, clips = np.array(extents, np.int64).reshape(-1, 2).T
    return Vectors(array, tuple(f"v{number}" for number in range(len(extents))), first, clips, 2.0 * clips, 0.5)


def by_hand(vectors: Vectors, sentences: np.ndarray) -> np.ndarray:
    """Every clip of every video in float64, from float16 values."""
    clips = [vectors.of(index) for index in range(len(vectors.keys))]
    every_clip = np.concatenate([*clips, np.empty((0, vectors.width))]).astype(np.float64)
    return sentences.astype(np.float16).astype(np.float64) @ every_clip.T


@pytest.fixture(params=["large blocks", "small blocks"])
def blocks(request, monkeypatch) -> None:
    if request.param == "small blocks":  # three vectors of eight numbers, so that most videos are cut
        monkeypatch.setattr(scan, "_BLOCK_BYTES", 48)
        monkeypatch.setattr(scan, "_BLOCKS_OF_A_TASK", 2)


EXTENTS = {
    "one after the other": [(0, 3), (3, 10), (13, 27)],
    "dead rows in between": [(2, 3), (9, 1), (10, 7), (30, 9)],
    "in another order": [(30, 9), (2, 3), (5, 2), (9, 1)],
    "two share their rows": [(4, 5), (4, 5), (9, 2)],
    "one clip": [(39, 1)],
    "none": [],
}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("extents", EXTENTS.values(), ids=EXTENTS)
@pytest.mark.parametrize("queries", [0, 1, 2, 33])
def test_every_clip_has_its_similarity_at_its_position(extents, queries):
    vectors = make_vectors(extents)
    sentences = unit_rows(queries, 8)
    values = similarities(vectors, sentences)
    assert values.dtype == np.float32 and values.shape == (queries, vectors.total_clips)
    assert np.abs(values - by_hand(vectors, sentences)).max(initial=0.0) < 1e-6
    for index, start in enumerate(vectors.starts):
        own = values[:, start : start + vectors.clips[index]]
        assert np.allclose(own, sentences @ vectors.of(index).T.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("width", [1, 3, 4, 6, 512, 768, 1152])
def test_every_width_is_exact_to_float32_and_close_to_unrounded_sentences(width):
    vectors = make_vectors([(0, 700), (700, 800)], rows=1500, width=width)
    sentences = unit_rows(9, width)
    for some in (sentences[:1], sentences):
        values = similarities(vectors, some)
        assert np.abs(values - by_hand(vectors, some)).max() < 1e-6
        unrounded = some.astype(np.float64) @ vectors.array.T.astype(np.float64)
        assert np.abs(values - unrounded).max() < 5e-4
        if width >= 512:
            assert np.abs(values - unrounded).mean() < 1e-5


def test_threads_and_the_other_sentences_change_nothing():
    vectors = make_vectors([(0, 900), (950, 50)], rows=1000, width=64)
    sentences = unit_rows(40, 64)
    whole = similarities(vectors, sentences, threads=1)
    assert np.array_equal(similarities(vectors, sentences, threads=3), whole)
    assert np.abs(np.concatenate([similarities(vectors, one[None]) for one in sentences]) - whole).max() < 1e-6


def test_a_part_of_the_library_has_the_same_digits():
    vectors = make_vectors([(3 * number, 3) for number in range(300)], rows=900, width=64)
    sentences = unit_rows(8, 64)
    for some in (sentences, sentences[:1]):
        whole = similarities(vectors, some)
        parts = [similarities(vectors.select(range(low, high)), some) for low, high in ((0, 1), (1, 98), (98, 300))]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("numkong.cdist", fail)
    with pytest.raises(MemoryError):
        similarities(make_vectors([(0, 3)]), unit_rows(1, 8))

"""The best videos of a scan, compared with a sorted list, and the parts of a library that are merged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from costl.pipeline.library import best_videos
from costl.pipeline.library.best_videos import BestVideo, LocalScan, best_of_row, cut_by_clips, merge
from costl.pipeline.library.scan import similarities
from costl.pipeline.library.vectors import Vectors

CLIPS = [3, 1, 4, 1, 5, 9, 2, 6]


def make_vectors(clips: list[int], *, width: int = 16) -> Vectors:
    """Videos one after the other; the last one has the vectors of the first, as far as they go."""
    array = np.random.default_rng(7).normal(size=(sum(clips), width)).astype(np.float16)
    rows = np.cumsum(clips) - clips
    array[rows[-1] : rows[-1] + clips[0]] = array[: clips[0]]
    array[rows[-1] + clips[0] :] = array[0]
    keys = tuple(f"v{number}" for number in range(len(clips)))
    return Vectors(array, keys, rows, np.array(clips), np.array(clips) / 0.5, fps=0.5)


def sentences(count: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(8).normal(size=(count, width)).astype(np.float32)


def sorted_by_hand(vectors: Vectors, row: np.ndarray) -> list[tuple[int, float]]:
    level = [max(row[start : start + clips]) for start, clips in zip(vectors.starts, vectors.clips, strict=True)]
    return [(index, level[index]) for index in sorted(range(len(level)), key=lambda index: (-level[index], index))]


@pytest.mark.parametrize("at_once", [1, 70, 32_000_000])
def test_the_best_videos_are_those_with_the_most_similar_clips(at_once, monkeypatch):
    monkeypatch.setattr(best_videos, "SIMILARITIES_AT_ONCE", at_once)
    vectors = make_vectors(CLIPS)
    rows = similarities(vectors, sentences(5))
    for count in (1, 3, 99):
        found = list(LocalScan().best_videos(vectors, sentences(5), count))
        assert len(found) == 5
        for row, videos in zip(rows, found, strict=True):
            assert [(video.index, video.level) for video in videos] == sorted_by_hand(vectors, row)[:count]
            for video in videos:
                start = vectors.starts[video.index]
                assert np.array_equal(video.curve, row[start : start + vectors.clips[video.index]])


@pytest.mark.parametrize("at_once", [1, 70, 32_000_000])
def test_the_highest_similarities_are_those_of_each_video(at_once, monkeypatch):
    monkeypatch.setattr(best_videos, "SIMILARITIES_AT_ONCE", at_once)
    vectors = make_vectors(CLIPS)
    done: list[int] = []
    found = LocalScan().highest(vectors, sentences(5), done.append)
    for row, levels in zip(similarities(vectors, sentences(5)), found.T, strict=True):
        assert dict(sorted_by_hand(vectors, row)) == dict(enumerate(levels))
    assert done == {1: list(range(8)), 70: [0, 5, 7], 32_000_000: [0]}[at_once]


def test_of_equal_videos_the_first_is_chosen():
    vectors = make_vectors([1] * 100)
    row = np.repeat(np.float32([0.5, 0.7]), 50)
    for count in (1, 7, 50, 60):
        expected = [*range(50, 100), *range(50)][:count]
        assert [video.index for video in best_of_row(row, vectors, count)] == expected


@pytest.mark.parametrize("cuts", [[4], [1, 2, 3], [7], list(range(1, 8))])
def test_merged_parts_are_the_whole_in_any_order(cuts):
    vectors = make_vectors(CLIPS)
    row = similarities(vectors, sentences(1))[0]
    ranges = list(zip([0, *cuts], [*cuts, len(CLIPS)], strict=True))
    for count in (1, 3, 99):
        merged: list[BestVideo] = []
        for start, end in np.random.default_rng(count).permutation(ranges).tolist():
            clips = slice(vectors.starts[start], vectors.starts[end - 1] + CLIPS[end - 1])
            part = best_of_row(row[clips], vectors.select(range(start, end)), count)
            merged = merge(merged, [replace(video, index=video.index + start) for video in part], count)
        assert [(video.index, video.level) for video in merged] == sorted_by_hand(vectors, row)[:count]


@pytest.mark.parametrize("most", [0, 1, 5, 9, 31, 1000])
def test_ranges_hold_every_video_once_and_no_more_clips_than_wanted(most):
    ranges = cut_by_clips(np.array(CLIPS), most)
    assert [index for start, end in ranges for index in range(start, end)] == list(range(len(CLIPS)))
    assert all(end == start + 1 or sum(CLIPS[start:end]) <= most for start, end in ranges)
    assert all(sum(CLIPS[start : end + 1]) > most for start, end in ranges[:-1]), "a range could hold one more"
    assert cut_by_clips(np.array([], np.int64), most) == []

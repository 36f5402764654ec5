"""Pairs of a sentence with a video in which it is not true."""

from __future__ import annotations

from costl.data.annotations import Query
from costl.data.wrong_videos import MAX_PAIRS, wrong_video_pairs


def queries_about(videos: int, of_each: int) -> list[Query]:
    return [Query(v * of_each + i, f"sentence {v} {i}", f"v{v}", 10.0 + v) for v in range(videos) for i in range(of_each)]


def own_videos(queries: list[Query]) -> dict[str, set[str]]:
    return {query.query: {query.vid} for query in queries}


def test_each_sentence_has_one_wrong_video_with_the_duration_of_that_video():
    queries = queries_about(6, 3)
    pairs = wrong_video_pairs(queries, true_videos=own_videos(queries))
    assert [pair.query for pair in pairs] == [query.query for query in queries]
    assert [pair.vid for pair in pairs[::3]] == ["v3", "v4", "v5", "v0", "v1", "v2"]
    assert all(pair.duration_s == 10.0 + int(pair.vid[1:]) and not pair.windows for pair in pairs)
    assert len({pair.qid for pair in pairs}) == len(pairs)


def test_a_video_in_which_the_sentence_is_true_is_passed_over():
    queries = queries_about(4, 1)
    true_videos = own_videos(queries) | {"sentence 0 0": {"v0", "v2", "v3"}, "sentence 1 0": {"v0", "v1", "v2", "v3"}}
    pairs = wrong_video_pairs(queries, true_videos=true_videos)
    assert [(pair.query, pair.vid) for pair in pairs] == [("sentence 0 0", "v1"), ("sentence 2 0", "v0"), ("sentence 3 0", "v1")]


def test_one_video_gives_no_pair():
    queries = queries_about(1, 3)
    assert wrong_video_pairs(queries, true_videos=own_videos(queries)) == [] == wrong_video_pairs([], true_videos={})


def test_a_large_split_is_sampled_evenly():
    queries = queries_about(300, 5)
    pairs = wrong_video_pairs(queries, true_videos=own_videos(queries))
    assert len(pairs) == MAX_PAIRS
    assert [pair.query for pair in (pairs[0], pairs[-1])] == ["sentence 0 0", f"sentence {1496 // 5} {1496 % 5}"]

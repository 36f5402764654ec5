"""Pairs of a sentence and a video that does not show it, to measure whether a model finds nothing there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from costl.data.annotations import Query

MAX_PAIRS = 400  # enough for an interval of a few percent, and a small part of the time of a large split


def wrong_video_pairs(queries: Sequence[Query], *, true_videos: Mapping[str, Collection[str]]) -> list[Query]:
    """Up to MAX_PAIRS of the sentences, evenly spaced, each with a video of another query.

    `true_videos` has the videos in which a sentence is true as far as it is known. A sentence that is true in all videos is
    left out. The same queries give the same pairs.
    """
    videos = list({query.vid: query.duration_s for query in queries}.items())
    index_of = {vid: index for index, (vid, _) in enumerate(videos)}
    step = max(1.0, len(queries) / MAX_PAIRS)
    chosen = [queries[int(i * step)] for i in range(min(MAX_PAIRS, len(queries)))]
    pairs: list[Query] = []
    for query in chosen:
        # Half the list away: neighbours are often cut from one recording.
        first = index_of[query.vid] + len(videos) // 2
        others = (videos[(first + i) % len(videos)] for i in range(len(videos)))
        wrong = ((vid, duration_s) for vid, duration_s in others if vid not in true_videos[query.query])
        for vid, duration_s in list(wrong)[:1]:
            pairs.append(Query(len(pairs), query.query, vid, duration_s))
    return pairs

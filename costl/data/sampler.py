"""The order of training: which queries share a batch, in which order, and with which negative pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from costl.data.annotations import Query
from costl.data.batch import Features, video_ids
from costl.data.splice import Part, VideoLabels, draw_parts
from costl.data.targets import query_targets

MAX_QUERIES_PER_VIDEO = 8  # in one batch: with more of them it would be a batch about one video


@dataclass(frozen=True)
class PlannedBatch:
    """The queries of a batch whose features are not read yet, its `negative_pairs` and `parts` as `collate` takes them."""

    queries: tuple[Query, ...]
    negative_pairs: tuple[tuple[int, int], ...] = ()
    parts: tuple[tuple[Part, ...], ...] = ()


def plan_epoch(
    queries: Sequence[Query],
    features: Features,
    *,
    batch_size: int,
    negative_pairs: bool,
    generator: torch.Generator,
    bucket_batches: int = 1,
    splice: float = 0.0,
) -> list[PlannedBatch]:
    """The batches of one epoch in random order; with `negative_pairs`, one for each video of a batch.

    `splice` is the share of the videos that are spliced, see `costl.data.splice`.

    All random numbers of the order are drawn here, so any process can read the batches, starting with any of them. With
    `bucket_batches` above 1, the queries of so many batches are sorted by the length of their video before they are
    divided into batches. The videos of a batch are then similar in length.
    """
    own_texts: dict[str, set[str]] = {}
    for query in queries:
        own_texts.setdefault(query.vid, set()).add(query.query)
    video_groups = _shuffled_video_groups(queries, batch_size, generator)
    if bucket_batches > 1:
        by_length = _sorted_by_length(video_groups, features, bucket=bucket_batches * batch_size)
        batches = list(_divide(by_length, batch_size))
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    else:
        batches = list(_divide(video_groups, batch_size))
    return [
        PlannedBatch(
            tuple(batch),
            _draw_negative_pairs(batch, own_texts, generator) if negative_pairs else (),
            draw_parts(_video_labels(batch, features), share=splice, generator=generator) if splice else (),
        )
        for batch in batches
    ]


def _shuffled_video_groups(queries: Sequence[Query], batch_size: int, generator: torch.Generator) -> list[list[Query]]:
    """Groups of queries about one video, at most MAX_QUERIES_PER_VIDEO each, in random order."""
    by_video: dict[str, list[Query]] = {}
    for i in torch.randperm(len(queries), generator=generator).tolist():
        by_video.setdefault(queries[i].vid, []).append(queries[i])
    step = min(MAX_QUERIES_PER_VIDEO, batch_size)
    groups = [of_video[i : i + step] for of_video in by_video.values() for i in range(0, len(of_video), step)]
    return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]


def _sorted_by_length(
    video_groups: Iterable[Sequence[Query]], features: Features, *, bucket: int
) -> Iterator[Sequence[Query]]:
    """The groups in buckets of `bucket` queries, each bucket sorted by the length of the videos.

    Rising and falling by turns, so that a batch across two buckets has similar lengths too.
    """
    buckets: dict[tuple[int, int], list[Sequence[Query]]] = {}
    repeats = Counter[tuple[int, str]]()
    query_count = 0
    for group in video_groups:
        number = query_count // bucket
        vid = group[0].vid
        # The second group of a video comes after the first of all others: the two cannot share a batch.
        buckets.setdefault((number, repeats[number, vid]), []).append(group)
        query_count += len(group)
        repeats[number, vid] += 1
    for turn, key in enumerate(sorted(buckets)):
        yield from sorted(buckets[key], key=lambda group: features.grid(group[0].vid).clips, reverse=turn % 2 == 1)


def _divide(video_groups: Iterable[Sequence[Query]], batch_size: int) -> Iterator[list[Query]]:
    """Batches of at most `batch_size` queries, none with two groups of the same video."""
    batch: list[Query] = []
    for group in video_groups:
        same_video = any(query.vid == group[0].vid for query in batch)
        if batch and (same_video or len(batch) + len(group) > batch_size):
            yield batch
            batch = []
        batch += group
    if batch:
        yield batch


def _video_labels(batch: Sequence[Query], features: Features) -> list[VideoLabels]:
    """The labels of each video of the batch, in the order of `video_ids`."""
    labels = []
    for vid in video_ids(batch):
        grid = features.grid(vid)
        queries = [query for query in batch if query.vid == vid]
        targets = [query_targets(query, grid, grid.clips) for query in queries]
        # Where a query has ratings and no moments, a rating of 0 is a label too.
        is_rated = any(query.clip_ids and not query.windows for query in queries)
        labelled = np.any([relevant | (ratings > 0) | is_rated for _, ratings, relevant in targets], axis=0)
        moments = np.concatenate([moments for moments, _, _ in targets])
        labels.append(VideoLabels(moments, labelled | _touched(moments, grid.clips)))
    return labels


def _touched(moments: np.ndarray, clips: int) -> np.ndarray:
    """Which clips have a part of a moment, however small."""
    clip = np.arange(clips)
    touched: np.ndarray = np.any((moments[:, :1] < clip + 1) & (moments[:, 1:] > clip), axis=0)
    return touched


def _draw_negative_pairs(
    batch: Sequence[Query], own_texts: Mapping[str, set[str]], generator: torch.Generator
) -> tuple[tuple[int, int], ...]:
    """For each video of the batch, a sentence about another video that is not one of the video's own texts, if there is
    one: (index of the query with this sentence, index of a query about the video)."""
    pairs: list[tuple[int, int]] = []
    for vid in dict.fromkeys(query.vid for query in batch):
        of_video = next(j for j, query in enumerate(batch) if query.vid == vid)
        order = torch.randperm(len(batch), generator=generator).tolist()
        candidates = (i for i in order if batch[i].vid != vid and batch[i].query not in own_texts[vid])
        pairs += [(i, of_video) for i in islice(candidates, 1)]
    return tuple(pairs)

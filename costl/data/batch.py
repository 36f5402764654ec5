"""Queries and cache -> padded batches with masks; the sentences about one video travel together, its tokens once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from costl.data.annotations import Query
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CacheError
from costl.pipeline.grid import Grid

RATED_CLIP_S = 2.0  # QVHighlights rates clips of two seconds, whatever the feature grid
HIGHEST_RATING = 4.0
QUERIES_OF_ONE_VIDEO = 8  # that may share a batch: more would make it a batch about one video


@runtime_checkable
class Features(Protocol):
    """What is asked of a cache; `costl.pipeline.cache.reader.CacheReader` is one."""

    fps: float
    patch_grid: tuple[int, int]
    joint: Joint

    def grid(self, video_id: str) -> Grid: ...
    def tokens(
        self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True
    ) -> np.ndarray: ...
    def words(self, query: str) -> Words: ...


@dataclass(frozen=True)
class Batch:
    """Padded tensors; `video[b]` is the video that sentence b asks about, every mask is True where something is real.

    Rows with `right` False pair a sentence with another video, to learn what is not there; they come last and carry no
    target. `texts[b]` names the words of sentence b, empty where the cache does not. `moments` [start, end) in clips, as
    many columns as the query with the most of them has; `ratings` in [0, 1]; `relevant` the clips inside a moment.

    At most `most_queries` sentences are put to one video, and `real_words` words are not padding. Both are counted when the
    batch is made, while its tensors are on the host: to read a number from a device, the host must wait for it.
    """

    queries: tuple[Query, ...]
    clips: tuple[int, ...]
    tokens: Float[Tensor, "v t n c"]
    frame_mask: Bool[Tensor, "v t"]
    video: Int[Tensor, "b"]
    words: Float[Tensor, "b l w"]
    word_mask: Bool[Tensor, "b l"]
    sentence: Float[Tensor, "b e"]
    texts: tuple[tuple[str, ...], ...]
    right: Bool[Tensor, "b"]
    moments: Float[Tensor, "b m 2"]
    moment_mask: Bool[Tensor, "b m"]
    ratings: Float[Tensor, "b t"]
    relevant: Bool[Tensor, "b t"]
    most_queries: int = 0
    real_words: int = 0

    def __post_init__(self) -> None:
        if not self.most_queries:
            object.__setattr__(self, "most_queries", most_of_one_video(self.video))
            object.__setattr__(self, "real_words", int(self.word_mask.sum()))

    @property
    def pairs(self) -> int:
        """The number of rows with `right` True: one for each query."""
        return len(self.queries)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU fetches from by itself, while others work."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(part) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **changed)

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward: tensors, and the plain numbers that it needs of them."""
        names = ("tokens", "frame_mask", "video", "words", "word_mask", "sentence", "most_queries", "real_words")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Planned:
    """What a batch will hold, before anything of it is read: `queries`, and `wrong` pairs as `collate` takes them."""

    queries: tuple[Query, ...]
    wrong: tuple[tuple[int, int], ...] = ()


def plan_epoch(
    queries: Sequence[Query],
    features: Features,
    *,
    batch_size: int,
    wrong: bool,
    generator: torch.Generator,
    bucket_batches: int = 1,
) -> list[Planned]:
    """One epoch in random order; with `wrong`, each video is also asked one sentence about another.

    All that is random about it is drawn here, so that batches can be read by anyone, from any of them on. With
    `bucket_batches` above 1, batches are made of videos of similar length, sorted among the queries of so many batches.
    """
    texts: dict[str, set[str]] = {}
    for query in queries:
        texts.setdefault(query.vid, set()).add(query.query)
    handfuls = _shuffled_handfuls(queries, batch_size, generator)
    if bucket_batches > 1:
        groups = list(_groups(_by_length(handfuls, features, bucket=bucket_batches * batch_size), batch_size))
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    else:
        groups = list(_groups(handfuls, batch_size))
    return [Planned(tuple(group), tuple(_wrong_pairs(group, texts, generator) if wrong else ())) for group in groups]


def training_batches(
    queries: Sequence[Query],
    features: Features,
    *,
    batch_size: int,
    patches: bool,
    wrong: bool,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """The batches of one epoch, planned as `plan_epoch` does."""
    for planned in plan_epoch(queries, features, batch_size=batch_size, wrong=wrong, generator=generator):
        yield collate(planned.queries, features, patches=patches, wrong=planned.wrong)


def evaluation_batches(
    queries: Sequence[Query], features: Features, *, batch_size: int, patches: bool
) -> Iterator[Batch]:
    """Every query once, videos together; the caller may rely on `Batch.queries`, not on the order of `queries`."""
    by_video = sorted(queries, key=lambda q: q.vid)
    for start in range(0, len(by_video), batch_size):
        yield collate(by_video[start : start + batch_size], features, patches=patches)


def ahead(batches: Iterable[Batch], count: int = 2) -> Generator[Batch, None, None]:
    """The same batches, `count` of them prepared in a thread while the model works."""
    batches = iter(batches)
    thread = ThreadPoolExecutor(1)
    try:
        waiting = [thread.submit(next, batches, None) for _ in range(count)]
        while (batch := waiting.pop(0).result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)  # whoever stops early waits for one batch at most


def collate(
    queries: Sequence[Query], features: Features, *, patches: bool, wrong: Sequence[tuple[int, int]] = ()
) -> Batch:
    """A batch of `queries`, then of `wrong` pairs (index of a query, index of a query whose video it is put to).

    Raises CacheError naming video and clip where tokens are no finite numbers.
    """
    vids = list(dict.fromkeys(q.vid for q in queries))
    grids = [features.grid(vid) for vid in vids]
    longest = max(grid.clips for grid in grids)
    video = [vids.index(q.vid) for q in queries]
    asked = [features.words(q.query) for q in queries] + [features.words(queries[i].query) for i, _ in wrong]
    targets = [_targets(q, grids[v], longest) for q, v in zip(queries, video, strict=True)]
    targets += [(np.zeros((0, 2)), np.zeros(longest), np.zeros(longest, bool))] * len(wrong)
    moments, ratings, relevant = zip(*targets, strict=True)
    tokens = _padded([features.tokens(vid, patches=patches) for vid in vids], np.float16)
    if not tokens.sum().isfinite():  # no sum of float16 overflows float32; far cheaper than looking at each
        video, clip = (~tokens.isfinite()).flatten(2).any(2).nonzero()[0].tolist()
        raise CacheError(not_finite(vids[video], clip))
    return Batch(
        queries=tuple(queries),
        clips=tuple(grids[v].clips for v in video),
        tokens=tokens,
        frame_mask=torch.arange(longest) < torch.tensor([[grid.clips] for grid in grids]),
        video=torch.tensor(video + [video[j] for _, j in wrong]),
        words=_padded([w.tokens for w in asked]),
        word_mask=_padded([np.ones(len(w.tokens), np.float32) for w in asked]).bool(),
        sentence=torch.from_numpy(np.stack([w.sentence for w in asked])),
        texts=tuple(w.texts for w in asked),
        right=torch.tensor([True] * len(queries) + [False] * len(wrong)),
        moments=_padded(moments),
        moment_mask=_padded([np.ones(len(m), np.float32) for m in moments]).bool(),
        ratings=_padded(ratings),
        relevant=torch.from_numpy(np.stack(relevant)),
    )


def most_of_one_video(video: Int[Tensor, "b"]) -> int:
    """The number of sentences about the video that most sentences ask about."""
    return int(video.bincount().max())


def behind(grid: Grid) -> float:
    """Where (in clips) a moment begins that is none of this video. The last clip stands for what lies between its end and
    there: a tail too short for a clip of its own, or the rounding of an annotation."""
    return grid.clips + max(1.0, RATED_CLIP_S * grid.fps)


def not_finite(vid: str, clip: int) -> str:
    """What to say of a clip with features that no model can use."""
    return (
        f"video {vid!r}, clip {clip}: its features are no finite numbers. costl cache verify names the file of every such "
        "video; delete these and run the same costl extract again."
    )


def _targets(query: Query, grid: Grid, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments [m 2] in clips, ratings [t] in [0, 1] and which clips [t] are inside a moment, padded to `longest`."""
    moments = np.array(query.windows, np.float64).reshape(-1, 2) * grid.fps
    moments[(moments[:, 0] >= grid.clips) & (moments[:, 0] < behind(grid)), 0] = grid.clips - 1
    moments = np.clip(moments, 0, grid.clips)
    moments = moments[moments[:, 1] > moments[:, 0]]
    centres = np.arange(longest) + 0.5
    relevant: np.ndarray = np.any((centres >= moments[:, :1]) & (centres < moments[:, 1:]), axis=0)
    if not query.clip_ids:
        return moments, relevant.astype(np.float64), relevant
    rated = np.zeros(int(max(query.clip_ids)) + 2)
    rated[list(query.clip_ids)] = np.mean(query.saliency, axis=1) / HIGHEST_RATING
    if query.rated_s:
        return moments, _mean_covering(np.array(query.rated_s), rated, centres / grid.fps), relevant
    which = np.minimum((centres / grid.fps / RATED_CLIP_S).astype(int), len(rated) - 1)
    return moments, rated[which], relevant


def _mean_covering(windows_s: np.ndarray, rated: np.ndarray, at_s: np.ndarray) -> np.ndarray:
    """Mean rating [t] of the rated windows [n 2] that cover each time; zero where none does."""
    covers = (windows_s[:, 0] <= at_s[:, None]) & (at_s[:, None] < windows_s[:, 1])
    values = np.zeros(len(windows_s))
    values[: len(rated)] = rated[: len(windows_s)]
    return covers @ values / np.maximum(1, covers.sum(1))


def _padded(arrays: Sequence[np.ndarray], dtype: type = np.float32) -> Tensor:
    """Float32 [n longest ...], zeros behind the shorter ones.

    What is float16 should stay so (`dtype`) until torch makes it float32, which it does many times as fast as numpy.
    """
    longest = max(len(a) for a in arrays)
    out = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out).float()


def _shuffled_handfuls(queries: Sequence[Query], size: int, generator: torch.Generator) -> list[list[Query]]:
    """Videos in random order, at most QUERIES_OF_ONE_VIDEO queries of one together."""
    by_video: dict[str, list[Query]] = {}
    for i in torch.randperm(len(queries), generator=generator).tolist():
        by_video.setdefault(queries[i].vid, []).append(queries[i])
    step = min(QUERIES_OF_ONE_VIDEO, size)
    handfuls = [mine[i : i + step] for mine in by_video.values() for i in range(0, len(mine), step)]
    return [handfuls[i] for i in torch.randperm(len(handfuls), generator=generator).tolist()]


def _groups(handfuls: Iterable[Sequence[Query]], size: int) -> Iterator[list[Query]]:
    """Batches of about `size` queries, each with a video's handful once."""
    group: list[Query] = []
    for handful in handfuls:
        again = any(query.vid == handful[0].vid for query in group)
        if group and (again or len(group) + len(handful) > size):
            yield group
            group = []
        group += handful
    if group:
        yield group


def _by_length(handfuls: Iterable[Sequence[Query]], features: Features, *, bucket: int) -> Iterator[Sequence[Query]]:
    """Sorted by the length of their video, among as many as hold `bucket` queries; rising and falling by turns, so that a
    batch across two buckets is of similar lengths too."""
    stretches: dict[tuple[int, int], list[Sequence[Query]]] = {}
    counted, again = 0, Counter[tuple[int, str]]()
    for handful in handfuls:
        number, vid = counted // bucket, handful[0].vid
        # A video's second handful comes after the first of all others: the two cannot share a batch.
        stretches.setdefault((number, again[number, vid]), []).append(handful)
        counted, again[number, vid] = counted + len(handful), again[number, vid] + 1
    for number, key in enumerate(sorted(stretches)):
        yield from sorted(stretches[key], key=lambda some: features.grid(some[0].vid).clips, reverse=number % 2 == 1)


def _wrong_pairs(
    group: Sequence[Query], texts: Mapping[str, set[str]], generator: torch.Generator
) -> list[tuple[int, int]]:
    """For each video of the group, a sentence about another one that is in none of the video's own `texts`."""
    pairs = []
    for vid in dict.fromkeys(q.vid for q in group):
        where = next(j for j, q in enumerate(group) if q.vid == vid)
        order = torch.randperm(len(group), generator=generator).tolist()
        fitting = (i for i in order if group[i].vid != vid and group[i].query not in texts[vid])
        pairs += [(i, where) for i in islice(fitting, 1)]
    return pairs

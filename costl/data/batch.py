"""A batch: queries and features -> padded tensors with masks and targets; the tokens of a video are in it once.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from costl.data.annotations import Query
from costl.data.targets import empty_targets, query_targets
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.errors import CacheError
from costl.pipeline.grid import Grid


@runtime_checkable
class Features(Protocol):
    """What batches need of a cache; `costl.pipeline.cache.reader.CacheReader` implements it."""

    fps: float
    patch_grid: tuple[int, int]
    joint: JointSpace

    def grid(self, video_id: str) -> Grid: ...
    def tokens(
        self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True
    ) -> np.ndarray: ...
    def words(self, query: str) -> SentenceTokens: ...


@dataclass(frozen=True)
class Batch:
    """Padded tensors for some queries; every mask is True where data is real.

    `video[b]` is the index of the video of row b. Negative pairs, rows with `is_positive_pair` False, put a query to
    another video, so that the model learns what is not there. They come last and have no target. `texts[b]` are the words
    of row b as text, empty if the cache does not have them. `moments` are [start, end) in clips, with as many columns as
    the query with the most moments has; `ratings` are in [0, 1]; `relevant` marks the clips inside a moment.

    At most `most_queries` rows are about one video, and `real_words` words are not padding. Both are counted when the
    batch is made, while its tensors are on the host: to read a number from a device, the host must wait for it.
    """

    queries: tuple[Query, ...]
    clips: tuple[int, ...]
    tokens: Float[Tensor, "v t s c"]
    frame_mask: Bool[Tensor, "v t"]
    video: Int[Tensor, "b"]
    words: Float[Tensor, "b l w"]
    word_mask: Bool[Tensor, "b l"]
    sentence: Float[Tensor, "b e"]
    texts: tuple[tuple[str, ...], ...]
    moments: Float[Tensor, "b m 2"]
    moment_mask: Bool[Tensor, "b m"]
    ratings: Float[Tensor, "b t"]
    relevant: Bool[Tensor, "b t"]
    most_queries: int = 0
    real_words: int = 0

    def __post_init__(self) -> None:
        if not self.most_queries:
            object.__setattr__(self, "most_queries", count_most_queries(self.video))
            object.__setattr__(self, "real_words", int(self.word_mask.sum()))

    @property
    def positive_pairs(self) -> int:
        """The number of rows with `is_positive_pair` True: one for each query."""
        return len(self.queries)

    @property
    def is_positive_pair(self) -> Bool[Tensor, "b"]:
        """Which rows put a query to its own video: those of the queries, which come first."""
        return torch.arange(len(self.video), device=self.video.device) < self.positive_pairs

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, which a GPU reads while the host goes on."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = change(value)
        return replace(self, **tensors)

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward: its tensors, `most_queries` and `real_words`."""
        names = ("tokens", "frame_mask", "video", "words", "word_mask", "sentence", "most_queries", "real_words")
        return {name: getattr(self, name) for name in names}


def collate(
    queries: Sequence[Query], features: Features, *, patches: bool, negative_pairs: Sequence[tuple[int, int]] = ()
) -> Batch:
    """A batch of `queries`, then of `negative_pairs` (index of a query, index of a query with the video for it).

    Raises CacheError naming video and clip if tokens are not finite.
    """
    vids = list(dict.fromkeys(query.vid for query in queries))
    grids = [features.grid(vid) for vid in vids]
    longest = max(grid.clips for grid in grids)
    video = [vids.index(query.vid) for query in queries]
    sentences = [features.words(query.query) for query in queries]
    sentences += [features.words(queries[i].query) for i, _ in negative_pairs]
    targets = [query_targets(query, grids[v], longest) for query, v in zip(queries, video, strict=True)]
    targets += [empty_targets(longest)] * len(negative_pairs)
    moments, ratings, relevant = zip(*targets, strict=True)
    return Batch(
        queries=tuple(queries),
        clips=tuple(grids[v].clips for v in video),
        tokens=_read_tokens(vids, features, patches=patches),
        frame_mask=torch.arange(longest) < torch.tensor([[grid.clips] for grid in grids]),
        video=torch.tensor(video + [video[j] for _, j in negative_pairs]),
        words=_pad([sentence.tokens for sentence in sentences]),
        word_mask=_pad([np.ones(len(sentence.tokens), np.float32) for sentence in sentences]).bool(),
        sentence=torch.from_numpy(np.stack([sentence.sentence for sentence in sentences])),
        texts=tuple(sentence.texts for sentence in sentences),
        moments=_pad(moments),
        moment_mask=_pad([np.ones(len(rows), np.float32) for rows in moments]).bool(),
        ratings=_pad(ratings),
        relevant=torch.from_numpy(np.stack(relevant)),
    )


def count_most_queries(video: Int[Tensor, "b"]) -> int:
    """The number of rows about the video that most rows are about."""
    return int(video.bincount().max())


def non_finite_message(vid: str, clip: int) -> str:
    """The error message for a clip whose features are not finite."""
    return (
        f"video {vid!r}, clip {clip}: its features are not finite (NaN or infinity). Run costl cache verify, which names "
        "the file of every such video. Delete these files and run the same costl extract again."
    )


def _read_tokens(vids: Sequence[str], features: Features, *, patches: bool) -> Float[Tensor, "v t s c"]:
    """The tokens of these videos, padded. Raises CacheError if some are not finite."""
    tokens = _pad([features.tokens(vid, patches=patches) for vid in vids], np.float16)
    if not tokens.sum().isfinite():  # a sum of float16 values cannot overflow float32; far cheaper than a test of each
        video, clip = (~tokens.isfinite()).flatten(2).any(2).nonzero()[0].tolist()
        raise CacheError(non_finite_message(vids[video], clip))
    return tokens


def _pad(arrays: Sequence[np.ndarray], dtype: type = np.float32) -> Tensor:
    """One float32 tensor [rows longest ...] of arrays of different lengths, with zeros behind the shorter ones.

    Pass `dtype` float16 for float16 arrays: torch converts the result to float32 many times faster than numpy does.
    """
    longest = max(len(array) for array in arrays)
    padded = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded).float()

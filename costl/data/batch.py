"""A batch: queries and features -> padded tensors with masks and targets; the tokens of a video are in it once.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from costl.data.annotations import Query
from costl.data.splice import Part, splice_targets
from costl.data.targets import empty_targets, query_targets
from costl.model.inputs import ModelInputs, map_tensors
from costl.pipeline.encode.types import SentenceTokens
from costl.pipeline.errors import CacheError
from costl.pipeline.grid import Grid


@runtime_checkable
class Features(Protocol):
    """What batches need of a cache; `costl.pipeline.cache.reader.CacheReader` implements it."""

    @property
    def fps(self) -> float: ...

    def grid(self, video_id: str) -> Grid: ...
    def tokens(
        self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True
    ) -> np.ndarray: ...
    def joint_vectors(self, video_id: str, *, clips: slice | Sequence[int] = slice(None)) -> np.ndarray: ...
    def words(self, query: str) -> SentenceTokens: ...


@dataclass(frozen=True)
class Share:
    """The part of a batch that this process computes, where several processes share the batch.

    `rows` and `videos` are the indices of its queries and videos in the batch. Both are empty in a process for which the
    batch has no video; its inputs are then about the first video, and their outputs do not count. `word_mask` and
    `real_words` are those of the whole batch.
    """

    rows: Int[Tensor, "r"]
    videos: Int[Tensor, "own"]
    word_mask: Bool[Tensor, "b l"]
    real_words: int


@dataclass(frozen=True)
class Batch:
    """Inputs of the model for some queries, and the targets of these queries; every mask is True where data is real.

    `video[b]` is the index of the video of row b. Negative pairs put a query to another video, so that the model learns
    what is not there. Their rows follow those of `queries` and have no target. `moments` are [start, end) in clips, with as
    many columns as the query with the most moments has; `ratings` are in [0, 1]; `relevant` marks the clips inside a
    moment. With a `share`, the `inputs` are those of this process, and all other fields those of the whole batch.
    """

    queries: tuple[Query, ...]
    inputs: ModelInputs
    video: Int[Tensor, "b"]
    frame_mask: Bool[Tensor, "v t"]
    moments: Float[Tensor, "b m 2"]
    moment_mask: Bool[Tensor, "b m"]
    ratings: Float[Tensor, "b t"]
    relevant: Bool[Tensor, "b t"]
    share: Share | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, which a GPU reads while the host goes on."""
        return map_tensors(self, Tensor.pin_memory)


def collate(
    queries: Sequence[Query],
    features: Features,
    *,
    patches: bool,
    negative_pairs: Sequence[tuple[int, int]] = (),
    parts: Sequence[Sequence[Part]] = (),
    rank: int = 0,
    world_size: int = 1,
) -> Batch:
    """A batch of `queries`, then of `negative_pairs` (index of a query, index of a query with the video for it).

    `parts` has those of each video, in the order of `video_ids`; a video without parts is read as a whole.

    Process `rank` of `world_size` reads the tokens of its own videos only. Raises CacheError naming video and clip if
    tokens are not finite.
    """
    vids = video_ids(queries)
    grids = [features.grid(vid) for vid in vids]
    spliced = [
        tuple(own) or (Part(v, 0, grid.clips),)
        for v, (own, grid) in enumerate(zip(parts or [()] * len(vids), grids, strict=True))
    ]
    lengths = [sum(part.stop - part.start for part in own) for own in spliced]
    longest = max(lengths)
    query_video = [vids.index(query.vid) for query in queries]
    video = torch.tensor(query_video + [query_video[j] for _, j in negative_pairs])
    targets = [
        splice_targets(query_targets(query, grids[v], grids[v].clips), spliced[v], v, longest)
        for query, v in zip(queries, query_video, strict=True)
    ]
    targets += [empty_targets(longest)] * len(negative_pairs)
    moments, ratings, relevant = zip(*targets, strict=True)
    frame_mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    sentences = [query.query for query in queries] + [queries[i].query for i, _ in negative_pairs]
    words, word_mask, sentence = _read_sentences(sentences, features)
    own = torch.tensor(own_videos(len(vids), rank, world_size))
    rows = torch.isin(video, own).nonzero()[:, 0]
    share = None
    if world_size > 1:
        count = 0 if rank >= len(vids) else None
        share = Share(rows[:count], own[:count], word_mask, int(word_mask.sum()))
    own_parts = [spliced[v] for v in own]
    inputs = ModelInputs(
        tokens=_pad_tokens(
            _read_parts(own_parts, vids, partial(features.tokens, patches=patches)),
            lambda video, clip: _clip_of_part(own_parts[video], vids, clip),
            longest=longest,
        ),
        joint=_pad(_read_parts(own_parts, vids, features.joint_vectors), longest=longest),
        frame_mask=frame_mask[own],
        video=torch.searchsorted(own, video[rows]),
        words=words[rows],
        word_mask=word_mask[rows],
        sentence=sentence[rows],
    )
    return Batch(
        queries=tuple(queries),
        inputs=inputs,
        video=video,
        frame_mask=frame_mask,
        moments=_pad(moments),
        moment_mask=_pad([np.ones(len(windows), np.float32) for windows in moments]).bool(),
        ratings=_pad(ratings),
        relevant=torch.from_numpy(np.stack(relevant)),
        share=share,
    )


def video_ids(queries: Sequence[Query]) -> list[str]:
    """The videos of these queries, in the order in which a batch numbers them."""
    return list(dict.fromkeys(query.vid for query in queries))


def own_videos(count: int, rank: int, world_size: int) -> list[int]:
    """The videos that process `rank` computes, of the `count` videos of a batch; the first one if there are too few."""
    return list(range(count))[rank::world_size] or [0]


def model_inputs(
    queries: Sequence[Query], features: Features, *, patches: bool, clips: slice | Sequence[int] = slice(None)
) -> ModelInputs:
    """The inputs of the model for these queries, from the `clips` of each video. Raises CacheError as `collate` does."""
    vids = video_ids(queries)
    arrays = [features.tokens(vid, clips=clips, patches=patches) for vid in vids]
    tokens = _pad_tokens(arrays, lambda video, clip: (vids[video], clip))
    frame_mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(array)] for array in arrays])
    words, word_mask, sentence = _read_sentences([query.query for query in queries], features)
    return ModelInputs(
        tokens=tokens,
        joint=_pad([features.joint_vectors(vid, clips=clips) for vid in vids]),
        frame_mask=frame_mask,
        video=torch.tensor([vids.index(query.vid) for query in queries]),
        words=words,
        word_mask=word_mask,
        sentence=sentence,
    )


def non_finite_message(vid: str, clip: int) -> str:
    """The error message for a clip whose features are not finite."""
    return (
        f"video {vid!r}, clip {clip}: its features are not finite (NaN or infinity). Run costl cache verify, which names "
        "the file of every such video. Delete these files and run the same costl extract again."
    )


def _read_parts(
    videos: Sequence[Sequence[Part]], vids: Sequence[str], read: Callable[..., np.ndarray]
) -> list[np.ndarray]:
    """The features of each video, whose parts are put together; `read` takes a video and a slice of `clips`."""
    arrays = [[read(vids[part.video], clips=slice(part.start, part.stop)) for part in parts] for parts in videos]
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in arrays]


def _clip_of_part(parts: Sequence[Part], vids: Sequence[str], clip: int) -> tuple[str, int]:
    """The video and the clip in it which stand at `clip` where these parts are put together."""
    for part in parts:
        if clip < part.stop - part.start:
            return vids[part.video], part.start + clip
        clip -= part.stop - part.start
    raise IndexError(clip)


def _pad_tokens(
    arrays: Sequence[np.ndarray], name_of: Callable[[int, int], tuple[str, int]], *, longest: int = 0
) -> Float[Tensor, "v t s c"]:
    """The tokens of some videos, padded to `longest` clips at least.

    Raises CacheError if some are not finite; `name_of(video, clip)` is the video and its clip for the message.
    """
    tokens = _pad(arrays, np.float16, longest=longest)
    if not tokens.sum().isfinite():  # a sum of float16 values cannot overflow float32; far cheaper than a test of each
        video, clip = (~tokens.isfinite()).flatten(2).any(2).nonzero()[0].tolist()
        raise CacheError(non_finite_message(*name_of(video, clip)))
    return tokens


def _read_sentences(
    sentences: Sequence[str], features: Features
) -> tuple[Float[Tensor, "b l w"], Bool[Tensor, "b l"], Float[Tensor, "b e"]]:
    """The words of these sentences, their mask, and each sentence as one vector."""
    read = [features.words(sentence) for sentence in sentences]
    word_mask = _pad([np.ones(len(sentence.tokens), np.float32) for sentence in read]).bool()
    return _pad([sentence.tokens for sentence in read]), word_mask, torch.from_numpy(np.stack([s.sentence for s in read]))


def _pad(arrays: Sequence[np.ndarray], dtype: type = np.float32, *, longest: int = 0) -> Tensor:
    """One float32 tensor [rows longest ...] of arrays of different lengths, with zeros behind the shorter ones.

    Pass `dtype` float16 for float16 arrays: torch converts the result to float32 many times faster than numpy does.
    """
    longest = max(longest, *(len(array) for array in arrays))
    padded = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded).float()

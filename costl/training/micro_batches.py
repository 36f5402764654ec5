"""Splits a batch into micro-batches, for several processes or one after another, with the gradient of the whole batch.

Losses are means over the positives of the whole batch, and the contrastive loss compares each sentence with the videos of
all others. The mean of the losses of micro-batches would be another loss. So only the work of the model is split:

    videos of the batch --assigned--> micro-batches --forward--> outputs --summed over processes--> outputs of the batch
    weights <--step-- gradient <--summed over processes-- part of each micro-batch <--backward-- loss of the batch

Every process has the whole batch except for its tokens (words and targets are small). It computes the loss of the whole
batch from all outputs, which is the same number in every process; the outputs of other processes are constants to it. The
sum of the gradients over the processes is then exactly the gradient of that loss, and no loss has to know of
micro-batches. A process with several micro-batches recomputes their activations in the backward pass, one micro-batch at
a time (gradient checkpointing, Chen et al. 2016): it needs the memory of one micro-batch and one forward more.

Except for dropout and rounding, a batch gives the same result, whatever the number of micro-batches and processes.
Dropout is seeded by `train.seed`, the step and the number of the micro-batch, so that only the number of processes times
`train.accumulate` decides its masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate as running_sums

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from costl.data.annotations import Query
from costl.data.batch import Batch, Features, collate, count_most_queries
from costl.data.sampler import MAX_QUERIES_PER_VIDEO
from costl.model.build import Model
from costl.model.contrast import NEGATIVE_CLIP_STEP, Similarities
from costl.model.costl import Outputs
from costl.model.cross_batch_contrast import cross_batch_negatives, similarity_heads
from costl.model.heads import MomentHead, anchors
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.grid import Grid
from costl.training.distributed import Ranks


@dataclass(frozen=True)
class MicroBatch:
    """Some videos of a batch and the sentences about them, for one forward.

    `videos` and `rows` are indices into the whole batch: of its videos, and of its queries and negative pairs. `number` counts
    the micro-batches of all processes and seeds dropout. `most_queries` and `real_words` are those of the rows; see
    `Batch`.
    """

    number: int
    videos: Int[Tensor, "v"]
    rows: Int[Tensor, "b"]
    tokens: Float[Tensor, "v t s c"]
    most_queries: int
    real_words: int

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`, except for the tokens."""
        videos = self.videos.to(device, non_blocking=True)
        rows = self.rows.to(device, non_blocking=True)
        return replace(self, videos=videos, rows=rows)

    def pin_memory(self) -> MicroBatch:
        """The same in pinned memory, which a GPU reads while the host goes on."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("videos", "rows", "tokens")}
        return replace(self, **pinned)


@dataclass(frozen=True)
class SplitBatch:
    """The `full_batch` without tokens, and the micro-batches of this process, or the `error` of reading them."""

    full_batch: Batch
    micro_batches: tuple[MicroBatch, ...]
    error: CostlError | None = None

    @property
    def queries(self) -> tuple[Query, ...]:
        """The queries of the whole batch."""
        return self.full_batch.queries

    def to(self, device: torch.device) -> SplitBatch:
        """The same on `device`, except for the tokens: the forward of each micro-batch moves its own."""
        micro_batches = tuple(micro_batch.to(device) for micro_batch in self.micro_batches)
        return replace(self, full_batch=self.full_batch.to(device), micro_batches=micro_batches)

    def pin_memory(self) -> SplitBatch:
        """The same in pinned memory, which a GPU reads while the host goes on."""
        micro_batches = tuple(micro_batch.pin_memory() for micro_batch in self.micro_batches)
        return replace(self, full_batch=self.full_batch.pin_memory(), micro_batches=micro_batches)


@dataclass(frozen=True)
class MicroBatchPlan:
    """How batches are split: over `world_size` processes, of which this is `rank`, with `accumulate` micro-batches each."""

    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches of a batch, in all processes."""
        return self.world_size * self.accumulate

    def collate(
        self,
        queries: Sequence[Query],
        features: Features,
        *,
        patches: bool,
        negative_pairs: Sequence[tuple[int, int]] = (),
    ) -> Batch | SplitBatch:
        """The batch of `costl.data.batch.collate` where it is not split, else the micro-batches of this process.

        Reads the tokens of no other videos than those of its micro-batches.
        """
        if self.micro_batches == 1:
            return collate(queries, features, patches=patches, negative_pairs=negative_pairs)
        full_batch = collate(queries, _WithoutTokens(features), patches=patches, negative_pairs=negative_pairs)
        vids = _vids(queries)
        try:
            micro_batches = tuple(
                _read(number, videos, vids, full_batch, features, patches=patches)
                for number, videos in self._own_videos(queries).items()
            )
        except CostlError as error:
            return SplitBatch(full_batch, (), error)
        return SplitBatch(full_batch, micro_batches)

    def reads(self, queries: Sequence[Query]) -> set[str]:
        """The videos of a batch whose tokens this process reads."""
        vids = _vids(queries)
        return {vids[v] for videos in self._own_videos(queries).values() for v in videos}

    def _own_videos(self, queries: Sequence[Query]) -> dict[int, list[int]]:
        """The number of each micro-batch of this process -> its videos."""
        queries_per_video = [sum(query.vid == vid for query in queries) for vid in _vids(queries)]
        assigned = assign_videos(queries_per_video, self.micro_batches)
        return {
            number: videos for number, videos in enumerate(assigned) if videos and number % self.world_size == self.rank
        }

    def refuse_too_many(self, queries: Sequence[Query], batch_size: int) -> None:
        """Raises UsageError when no batch has a video for every micro-batch."""
        most = max_videos_per_batch(queries, batch_size)
        if self.micro_batches <= most:
            return
        limit = f"train.batch_size is {batch_size}: a batch holds at most {most} of the training videos, which are not divided"
        if self.accumulate == 1:
            raise UsageError(
                f"{self.world_size} processes are more than a batch can be shared by ({limit}). Start at most {most} "
                f"(torchrun --nproc_per_node={most}), or train with a larger train.batch_size."
            )
        each = f" in each of {self.world_size} processes" if self.world_size > 1 else ""
        raise UsageError(
            f"train.accumulate is {self.accumulate}{each}, more micro-batches than a batch has videos ({limit}). Set "
            f"train.accumulate to at most {max(1, most // self.world_size)}, or a larger train.batch_size."
        )


def _vids(queries: Sequence[Query]) -> list[str]:
    """The videos in the order in which a batch numbers them."""
    return list(dict.fromkeys(query.vid for query in queries))


def assign_videos(queries_per_video: Sequence[int], micro_batches: int) -> list[list[int]]:
    """The videos of each micro-batch: those with most queries first, each to the micro-batch with the fewest so far.

    The last micro-batches are empty when there are fewer videos than micro-batches.
    """
    assigned: list[list[int]] = [[] for _ in range(micro_batches)]
    queries = [0] * micro_batches
    for video in sorted(range(len(queries_per_video)), key=lambda v: -queries_per_video[v]):
        number = queries.index(min(queries))
        assigned[number].append(video)
        queries[number] += queries_per_video[video]
    return [sorted(videos) for videos in assigned]


def max_videos_per_batch(queries: Sequence[Query], batch_size: int) -> int:
    """The most videos that a batch can hold, as `costl.data.sampler.plan_epoch` groups queries."""
    counts: dict[str, int] = {}
    for query in queries:
        counts[query.vid] = counts.get(query.vid, 0) + 1
    group = min(MAX_QUERIES_PER_VIDEO, batch_size)
    smallest_groups = sorted(count % group or group for count in counts.values())
    return sum(size <= batch_size for size in running_sums(smallest_groups))


def _read(
    number: int, videos: Sequence[int], vids: Sequence[str], full_batch: Batch, features: Features, *, patches: bool
) -> MicroBatch:
    """The micro-batch with its tokens, padded as in the whole batch."""
    arrays = [features.tokens(vids[v], patches=patches) for v in videos]
    tokens = np.zeros((len(arrays), full_batch.frame_mask.shape[1], *arrays[0].shape[1:]), np.float16)
    for padded, array in zip(tokens, arrays, strict=True):
        padded[: len(array)] = array
    video_index = torch.tensor(videos)
    rows = torch.isin(full_batch.video, video_index).nonzero()[:, 0]
    return MicroBatch(
        number=number,
        videos=video_index,
        rows=rows,
        tokens=torch.from_numpy(tokens).float(),
        most_queries=count_most_queries(full_batch.video[rows]),
        real_words=int(full_batch.word_mask[rows].sum()),
    )


class _WithoutTokens:
    """The features of a cache with empty tokens [t 0 0], which are not read."""

    def __init__(self, features: Features):
        self._features = features
        self.fps: float = features.fps
        self.patch_grid: tuple[int, int] = features.patch_grid
        self.joint: JointSpace = features.joint

    def grid(self, video_id: str) -> Grid:
        return self._features.grid(video_id)

    def tokens(self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        return np.zeros((self.grid(video_id).clips, 0, 0), np.float16)

    def words(self, query: str) -> SentenceTokens:
        return self._features.words(query)


def forward_micro_batches(
    model: Model, batch: SplitBatch, ranks: Ranks, *, draws: tuple[int, int], contrast: bool
) -> Outputs:
    """The outputs of the model for the whole batch; their gradient reaches the weights through this process's micro-batches.

    `draws` is (`train.seed`, step), which seeds dropout. Without `contrast` the similarities are zero, since no loss reads
    them. Raises the CostlError of a process that could not read its micro-batches, in all processes.
    """
    full_batch = batch.full_batch
    head = next(module for module in model.modules() if isinstance(module, MomentHead))
    centres, strides = anchors(full_batch.frame_mask.shape[1], head.strides, full_batch.video.device)
    outputs = _zero_outputs(full_batch, len(centres), similarity_heads(model))
    if not batch.micro_batches:  # no gradient flows back from here, but backward() needs a graph
        outputs = [output.requires_grad_() for output in outputs]
    for micro_batch in batch.micro_batches:
        arguments = (model, micro_batch, full_batch, draws, contrast)
        if len(batch.micro_batches) == 1:  # no other micro-batch needs the memory: its activations are kept
            parts = _forward(*arguments)
        else:
            parts = checkpoint(_forward, *arguments, use_reentrant=False, preserve_rng_state=False)
        outputs = _scatter(outputs, parts, micro_batch)
    foreground, spans, positions, saliency, positives, negatives = _sum_outputs(outputs, ranks, batch.error)
    return Outputs(
        foreground=foreground,
        spans=spans,
        position_mask=positions > 0,
        centres=centres,
        strides=strides,
        saliency=saliency,
        similarities=Similarities(positives=positives.movedim(1, 0), negatives=negatives.movedim(2, 0)),
    )


def sum_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Sums the gradients of all processes; a weight without a gradient in any of them keeps none, as in one process."""
    if ranks.world_size == 1:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=weights[0].dtype)
    has_gradient = has_gradient.to(weights[0].device, non_blocking=True)
    summed = ranks.all_reduce(_flatten([*gradients, has_gradient]))
    *totals, counts = _unflatten(summed, [*gradients, has_gradient])
    for weight, total, count in zip(weights, totals, counts.tolist(), strict=True):
        weight.grad = total if count else None


def dropout_seed(seed: int, step: int, number: int) -> int:
    """The seed of the draws of micro-batch `number`, for torch.manual_seed."""
    return int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0])


def _zero_outputs(full_batch: Batch, positions: int, heads: int) -> list[Tensor]:
    """Zeros for the results of `_forward`, in the shapes of the whole batch."""
    videos, clips = full_batch.frame_mask.shape
    negative_clips = -(-clips // NEGATIVE_CLIP_STEP)
    shapes = [(positions,), (positions, 2), (positions,), (clips,), (heads, clips), (videos, heads, negative_clips)]
    return [full_batch.sentence.new_zeros(len(full_batch.video), *shape) for shape in shapes]


def _forward(
    model: Model, micro_batch: MicroBatch, full_batch: Batch, draws: tuple[int, int], contrast: bool
) -> list[Tensor]:
    """Foreground, spans, positions and saliency of the rows of a micro-batch, each [b ...].

    With `contrast` also the similarities: positives of the rows [b a t], and negatives of all rows of the whole batch with
    the videos of the micro-batch [b v a u].
    """
    torch.manual_seed(dropout_seed(*draws, micro_batch.number))
    videos = micro_batch.videos
    rows = micro_batch.rows
    with cross_batch_negatives(model) as negatives_of:
        outputs = model(
            tokens=micro_batch.tokens.to(full_batch.video.device, non_blocking=True),
            frame_mask=full_batch.frame_mask[videos],
            video=torch.searchsorted(videos, full_batch.video[rows]),
            words=full_batch.words[rows],
            word_mask=full_batch.word_mask[rows],
            sentence=full_batch.sentence[rows],
            most_queries=micro_batch.most_queries,
            real_words=micro_batch.real_words,
            contrast=contrast,
        )
        parts = [outputs.foreground, outputs.spans, outputs.position_mask, outputs.saliency]
        if outputs.similarities is None:
            return parts
        negatives = negatives_of(full_batch.words, full_batch.word_mask, full_batch.sentence, full_batch.real_words)
    return [*parts, outputs.similarities.positives.movedim(0, 1), negatives.movedim(0, 2)]


def _scatter(outputs: Sequence[Tensor], parts: Sequence[Tensor], micro_batch: MicroBatch) -> list[Tensor]:
    """The outputs with the results of a micro-batch at its rows, and its negatives at its videos."""
    scattered = list(outputs)
    for i, part in enumerate(parts):
        axis, index = (1, micro_batch.videos) if i == len(outputs) - 1 else (0, micro_batch.rows)
        scattered[i] = outputs[i].index_copy(axis, index, part.to(outputs[i].dtype))
    return scattered


def _sum_outputs(outputs: Sequence[Tensor], ranks: Ranks, error: CostlError | None) -> list[Tensor]:
    """The sums of the outputs of all processes, each with the gradient of the part of this process."""
    if error is not None and ranks.world_size == 1:
        raise error
    if ranks.world_size == 1:
        return list(outputs)
    failed = outputs[0].new_full((1,), float(error is not None))
    summed = ranks.all_reduce(_flatten([*(output.detach() for output in outputs), failed]))
    *totals, failed = _unflatten(summed, [*outputs, failed])
    if failed.item():
        _raise_shared(error, ranks)
    return [output + (total - output.detach()) for output, total in zip(outputs, totals, strict=True)]


def _raise_shared(error: CostlError | None, ranks: Ranks) -> None:
    with ranks.all_or_none():
        if error is not None:
            raise error


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    parts = flat.split([tensor.numel() for tensor in like])
    return (part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True))

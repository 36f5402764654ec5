"""A batch worked through in shares, by several processes or one after another, with the gradient of the whole batch.

Losses are means over the positives of the whole batch, and contrast sets a sentence against the videos of all others: the
mean of the shares' losses would be another loss. So the losses are not shared, the model's work is:

    videos of the batch --dealt--> shares --forward--> outputs --summed over processes--> outputs of the whole batch
    weights <--step-- gradient <--summed over processes-- each share's part <--backward-- loss of the whole batch

Every process knows the whole batch but for its tokens (words and targets are small) and computes the whole batch's loss,
the same number everywhere, from all outputs; those of the others are constants to it. The sum over the processes of what
flows back is then exactly the gradient of that loss, and no loss needs to know of shares. A process with several shares
forgets what is inside the model between them and makes it again on the way back, one share at a time (Chen et al. 2016),
so that memory is that of one share and the work a forward more.

What is promised: but for dropout and rounding, one global batch gives one result, however many shares it has and whoever
works through them. Dropout draws by (train.seed, step, number of the share): processes times `train.accumulate` decide the
draws, not who makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate as running

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from costl.data.annotations import Query
from costl.data.batch import QUERIES_OF_ONE_VIDEO, Batch, Features, collate, most_of_one_video
from costl.model.build import Model
from costl.model.contrast import RIVAL_STEP, Match
from costl.model.costl import Outputs
from costl.model.heads import MomentHead, anchors
from costl.model.negatives import rivals_of, ways
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.grid import Grid
from costl.training.distributed import Ranks


@dataclass(frozen=True)
class Share:
    """Some `videos` of a batch (their numbers in it) and the sentences put to them (`rows`), to be worked through at once.

    `number` counts all shares of the batch, those of other processes too; it seeds what is drawn. `most_queries` and
    `real_words` are those of its rows; see `Batch`.
    """

    number: int
    videos: Int[Tensor, "u"]
    rows: Int[Tensor, "a"]
    tokens: Float[Tensor, "u t n c"]
    most_queries: int
    real_words: int

    def to(self, device: torch.device) -> Share:
        """The same on `device`, except for the tokens."""
        videos = self.videos.to(device, non_blocking=True)
        rows = self.rows.to(device, non_blocking=True)
        return replace(self, videos=videos, rows=rows)

    def pin_memory(self) -> Share:
        """The same in memory that a GPU fetches from by itself."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("videos", "rows", "tokens")}
        return replace(self, **pinned)


@dataclass(frozen=True)
class Split:
    """A batch in shares: the `whole` of it without tokens, and the shares of this process; or why it could not be read."""

    whole: Batch
    shares: tuple[Share, ...]
    failed: CostlError | None = None

    @property
    def queries(self) -> tuple[Query, ...]:
        """Those of the whole batch."""
        return self.whole.queries

    def to(self, device: torch.device) -> Split:
        """The same on `device`, but for the tokens: each share brings its own when its turn has come."""
        return replace(self, whole=self.whole.to(device), shares=tuple(share.to(device) for share in self.shares))

    def pin_memory(self) -> Split:
        """The same in memory that a GPU fetches from by itself."""
        return replace(self, whole=self.whole.pin_memory(), shares=tuple(share.pin_memory() for share in self.shares))


@dataclass(frozen=True)
class Plan:
    """How batches are shared: over `count` processes, of which this is number `rank`, each with `accumulate` shares."""

    rank: int = 0
    count: int = 1
    accumulate: int = 1

    @property
    def shares(self) -> int:
        """All of them."""
        return self.count * self.accumulate

    def collate(
        self, queries: Sequence[Query], features: Features, *, patches: bool, wrong: Sequence[tuple[int, int]] = ()
    ) -> Batch | Split:
        """What `dataset.collate` makes of the same, or its shares of this process, which alone are read."""
        if self.shares == 1:
            return collate(queries, features, patches=patches, wrong=wrong)
        whole = collate(queries, _WithoutTokens(features), patches=patches, wrong=wrong)
        mine, vids = self._mine(queries), _vids(queries)
        try:
            shares = tuple(
                _read(number, videos, vids, whole, features, patches=patches) for number, videos in mine.items()
            )
        except CostlError as error:
            return Split(whole, (), error)
        return Split(whole, shares)

    def reads(self, queries: Sequence[Query]) -> set[str]:
        """The videos of a batch whose tokens this process reads."""
        vids = _vids(queries)
        return {vids[v] for videos in self._mine(queries).values() for v in videos}

    def _mine(self, queries: Sequence[Query]) -> dict[int, list[int]]:
        vids = _vids(queries)
        dealt = deal([sum(query.vid == vid for query in queries) for vid in vids], self.shares)
        return {number: videos for number, videos in enumerate(dealt) if videos and number % self.count == self.rank}

    def refuse_too_many(self, queries: Sequence[Query], batch_size: int) -> None:
        """Raises UsageError when no batch has a video for every share."""
        most = most_videos(queries, batch_size)
        if self.shares <= most:
            return
        held = f"train.batch_size is {batch_size}: a batch holds at most {most} of the training videos, which are not divided"
        if self.accumulate == 1:
            raise UsageError(
                f"{self.count} processes are more than a batch can be shared by ({held}). Start at most {most} "
                f"(torchrun --nproc_per_node={most}), or train with a larger train.batch_size."
            )
        each = f" in each of {self.count} processes" if self.count > 1 else ""
        raise UsageError(
            f"train.accumulate is {self.accumulate}{each}, more shares than a batch has videos ({held}). Set "
            f"train.accumulate to at most {max(1, most // self.count)}, or a larger train.batch_size."
        )


def _vids(queries: Sequence[Query]) -> list[str]:
    """In the order in which a batch numbers them."""
    return list(dict.fromkeys(query.vid for query in queries))


def deal(sentences: Sequence[int], shares: int) -> list[list[int]]:
    """Videos to shares, those with most sentences first, each to the share that has the fewest so far.

    `sentences` says how many ask about each video. Shares have about equally many; the last are empty when there are
    fewer videos than shares.
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    load = [0] * shares
    for which in sorted(range(len(sentences)), key=lambda v: -sentences[v]):
        to = load.index(min(load))
        dealt[to].append(which)
        load[to] += sentences[which]
    return [sorted(videos) for videos in dealt]


def most_videos(queries: Sequence[Query], batch_size: int) -> int:
    """The most videos that a batch can hold, as `dataset.training_batches` puts queries together."""
    counts: dict[str, int] = {}
    for query in queries:
        counts[query.vid] = counts.get(query.vid, 0) + 1
    step = min(QUERIES_OF_ONE_VIDEO, batch_size)
    smallest = sorted(count % step or step for count in counts.values())
    return sum(size <= batch_size for size in running(smallest))


def _read(
    number: int, videos: Sequence[int], vids: Sequence[str], whole: Batch, features: Features, *, patches: bool
) -> Share:
    """The share with its tokens, padded as in the whole batch."""
    read = [features.tokens(vids[v], patches=patches) for v in videos]
    tokens = np.zeros((len(read), whole.frame_mask.shape[1], *read[0].shape[1:]), np.float16)
    for row, array in zip(tokens, read, strict=True):
        row[: len(array)] = array
    which = torch.tensor(videos)
    rows = torch.isin(whole.video, which).nonzero()[:, 0]
    return Share(
        number=number,
        videos=which,
        rows=rows,
        tokens=torch.from_numpy(tokens).float(),
        most_queries=most_of_one_video(whole.video[rows]),
        real_words=int(whole.word_mask[rows].sum()),
    )


class _WithoutTokens:
    """Features of which nothing large is read: tokens [t 0 0]."""

    def __init__(self, features: Features):
        self._features = features
        self.fps: float = features.fps
        self.patch_grid: tuple[int, int] = features.patch_grid
        self.joint: Joint = features.joint

    def grid(self, video_id: str) -> Grid:
        return self._features.grid(video_id)

    def tokens(self, video_id: str, *, clips: slice | Sequence[int] = slice(None), patches: bool = True) -> np.ndarray:
        return np.zeros((self.grid(video_id).clips, 0, 0), np.float16)

    def words(self, query: str) -> Words:
        return self._features.words(query)


def outputs_in_shares(model: Model, split: Split, ranks: Ranks, *, draws: tuple[int, int], contrast: bool) -> Outputs:
    """The model's outputs for the whole batch; what flows back from here reaches the weights by way of this process's
    shares alone. `draws` are seed and step; without `contrast` nobody asks for `match`, and it is zero.

    Raises the CostlError of a process that could not read its shares, in all of them.
    """
    whole = split.whole
    head = next(module for module in model.modules() if isinstance(module, MomentHead))
    centres, strides = anchors(whole.frame_mask.shape[1], head.strides, whole.video.device)
    own = _blank(whole, len(centres), ways(model))
    if not split.shares:  # nothing of this process's flows back, but the loss is taken and its gradient asked for
        own = [part.requires_grad_() for part in own]
    for share in split.shares:
        given = (model, share, whole, draws, contrast)
        # A share alone need not make room for another: its insides are kept as ever.
        alone = len(split.shares) == 1
        made = _work(*given) if alone else checkpoint(_work, *given, use_reentrant=False, preserve_rng_state=False)
        own = _placed(own, made, share)
    foreground, spans, positions, saliency, match, rivals = _of_all(own, ranks, split.failed)
    return Outputs(
        foreground=foreground,
        spans=spans,
        positions=positions > 0,
        centres=centres,
        strides=strides,
        saliency=saliency,
        match=Match(match.movedim(1, 0), rivals.movedim(2, 0)),
    )


def sum_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Each process's part of the gradient becomes the whole of it; what no part touched keeps none, as in one process."""
    if ranks.count == 1:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    has_gradient = torch.tensor([weight.grad is not None for weight in weights], dtype=weights[0].dtype)
    touched = has_gradient.to(weights[0].device, non_blocking=True)
    *sums, touched = _unpacked(ranks.total(_packed([*parts, touched])), [*parts, touched])
    for weight, total, count in zip(weights, sums, touched.tolist(), strict=True):
        weight.grad = total if count else None


def seed_of(seed: int, step: int, share: int) -> int:
    """What the draws of a share follow from, for torch.manual_seed."""
    return int(np.random.SeedSequence((seed, step, share)).generate_state(1, np.uint64)[0])


def _blank(whole: Batch, positions: int, ways: int) -> list[Tensor]:
    """Zeros for what `_work` makes, in the shapes of the whole batch."""
    (videos, clips), sentences = whole.frame_mask.shape, len(whole.video)
    match = [(ways, clips), (videos, ways, -(-clips // RIVAL_STEP))]
    rows = [(positions,), (positions, 2), (positions,), (clips,), *match]
    return [whole.sentence.new_zeros(sentences, *row) for row in rows]


def _work(model: Model, share: Share, whole: Batch, draws: tuple[int, int], contrast: bool) -> list[Tensor]:
    """One share through the model: foreground, spans, positions, saliency and match of its rows [a ...]; then the
    rivals among its videos, for all sentences of the batch [b u s ...]."""
    torch.manual_seed(seed_of(*draws, share.number))
    videos, rows = share.videos, share.rows
    with rivals_of(model) as rivals:
        made = model(
            tokens=share.tokens.to(whole.video.device, non_blocking=True),
            frame_mask=whole.frame_mask[videos],
            video=torch.searchsorted(videos, whole.video[rows]),
            words=whole.words[rows],
            word_mask=whole.word_mask[rows],
            sentence=whole.sentence[rows],
            most_queries=share.most_queries,
            real_words=share.real_words,
            matching=contrast,
        )
        said = [made.foreground, made.spans, made.positions, made.saliency]
        if made.match is None:
            return said
        others = rivals(whole.words, whole.word_mask, whole.sentence, whole.real_words)
    return [*said, made.match.own.movedim(0, 1), others.movedim(0, 2)]


def _placed(blank: Sequence[Tensor], made: Sequence[Tensor], share: Share) -> list[Tensor]:
    """What a share made where it belongs in the whole batch: at its rows, and rivals at its videos."""
    placed = [
        into.index_copy(0, share.rows, part.to(into.dtype)) for into, part in zip(blank[:-1], made[:5], strict=False)
    ]
    placed += [
        into.index_copy(1, share.videos, part.to(into.dtype)) for into, part in zip(blank[-1:], made[5:], strict=False)
    ]
    return [*placed, *blank[len(placed) :]]


def _of_all(own: Sequence[Tensor], ranks: Ranks, failed: CostlError | None) -> list[Tensor]:
    """The sums of all processes' tensors, each with the gradient of its own part."""
    if failed is not None and ranks.count == 1:
        raise failed
    if ranks.count == 1:
        return list(own)
    flag = own[0].new_full((1,), float(failed is not None))
    *sums, flag = _unpacked(ranks.total(_packed([*(part.detach() for part in own), flag])), [*own, flag])
    if flag.item():
        _tell_failure(failed, ranks)
    return [part + (total - part.detach()) for part, total in zip(own, sums, strict=True)]


def _tell_failure(failed: CostlError | None, ranks: Ranks) -> None:
    with ranks.together():
        if failed is not None:
            raise failed


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    parts = packed.split([tensor.numel() for tensor in like])
    return (part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True))

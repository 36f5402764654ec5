"""Gathers what the processes computed for their shares of a batch, with gradients.

    videos of the batch -> share of each process -> outputs of the share -> outputs of the batch -> loss, in every process

Losses are means over the positives of the whole batch, and the contrastive loss compares each sentence with the videos of
all others, so the mean of the losses of the shares would be another loss. Here every process computes the loss of the whole
batch. The backward pass of a gather sums the gradients that come back in the processes, and DistributedDataParallel divides
the gradients of the weights by the number of processes. Together this is the gradient of that loss.

Axes: see `costl.model.costl`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from costl.data.batch import Batch
from costl.model.contrast import BatchTexts, Similarities
from costl.model.costl import Outputs
from costl.training.distributed import Ranks


def batch_texts(batch: Batch, ranks: Ranks) -> BatchTexts:
    """The texts of the whole batch, for a forward with the inputs of this process."""
    share = batch.share
    if share is None:
        return BatchTexts.of_inputs(batch.inputs)
    gather = partial(_gather, index=share.rows, count=len(batch.video), ranks=ranks)
    return BatchTexts(share.word_mask, share.real_words, gather)


def gather_outputs(outputs: Outputs, batch: Batch, ranks: Ranks) -> Outputs:
    """The outputs for the whole batch, from those for the share of each process; the same in a single process."""
    share = batch.share
    if share is None:
        return outputs
    by_row = partial(_gather, index=share.rows, count=len(batch.video), ranks=ranks)
    similarities = outputs.similarities
    if similarities is not None:
        negatives = _gather(
            similarities.negatives.movedim(2, 0), index=share.videos, count=len(batch.frame_mask), ranks=ranks
        )
        similarities = Similarities(
            positives=by_row(similarities.positives.movedim(1, 0)).movedim(0, 1), negatives=negatives.movedim(0, 2)
        )
    return replace(
        outputs,
        foreground=by_row(outputs.foreground),
        spans=by_row(outputs.spans),
        position_mask=by_row(outputs.position_mask) > 0,
        saliency=by_row(outputs.saliency),
        similarities=similarities,
    )


def _gather(
    x: Float[Tensor, "_ *rest"], *, index: Int[Tensor, "own"], count: int, ranks: Ranks
) -> Float[Tensor, "count *rest"]:
    """The rows of all processes, `count` in number, from those of this process, which are at `index` among them.

    Rows of `x` after the first `len(index)` do not count.
    """
    own = x[: len(index)].float()
    return _SumOverProcesses.apply(own.new_zeros(count, *x.shape[1:]).index_copy(0, index, own), ranks)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of the tensors of all processes. Its backward pass is the same sum, of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.all_reduce(gradient.clone()), None

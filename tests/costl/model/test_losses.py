"""Each loss equals a value computed by hand; none overflows, reads padding or depends on the order of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from costl.model import losses
from costl.model.heads import anchors
from costl.model.matcher import MomentTargets, assign_moments

CPU = torch.device("cpu")


def soft(x: float) -> float:
    """log(1 + e^x): the cross-entropy of a logit that should be low (or of -x that should be high)."""
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one_target(positive, span=(0.0, 4.0)) -> MomentTargets:
    positive = torch.tensor(positive)
    return MomentTargets(positive, torch.tensor(span).expand(*positive.shape, 2))


# --- numbers by hand ---------------------------------------------------------------------------------------------


SPANS = torch.tensor([[[2.0, 6.0], [0.0, 8.0], [0.0, 4.0]]])  # they overlap the target by a third, a half, and wholly


def focal(logit: float, truth: float) -> float:
    return (soft(logit) - truth * logit) * (truth - sigmoid(logit)) ** 2


def test_the_focal_target_is_the_iou_of_a_positive_and_0_elsewhere():
    """The second position overlaps too, but no moment is assigned to it; the third is padding."""
    logits, targets = torch.tensor([[2.0, -1.0, 7.0]]), one_target([[True, False, False]])
    loss = losses.focal_loss(logits, SPANS, targets, torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx(focal(2, 1 / 3) + focal(-1, 0), rel=1e-6)


def test_focal_loss_is_divided_by_the_number_of_positives():
    logits, real = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[True, True, True]])
    loss = losses.focal_loss(logits, SPANS, one_target([[True, False, True]]), real)
    assert loss.item() == pytest.approx((focal(1, 1 / 3) + focal(1, 0) + focal(1, 1)) / 2, rel=1e-6)


def test_focal_loss_has_a_gradient_for_scores_but_not_for_spans():
    logits, predicted = torch.tensor([[2.0, -1.0, -1.0]], requires_grad=True), SPANS.clone().requires_grad_()
    loss = losses.focal_loss(logits, predicted, one_target([[True, False, True]]), torch.ones(1, 3).bool())
    to_logits, to_spans = torch.autograd.grad(loss, (logits, predicted), allow_unused=True)
    assert to_spans is None
    assert to_logits[0, 0] > 0 and to_logits[0, 1] > 0 and to_logits[0, 2] < 0


def test_overlap_loss_is_one_minus_the_distance_iou():
    predicted = torch.tensor([[[2.0, 6.0], [0.0, 4.0], [50.0, 60.0]]])
    loss = losses.overlap_loss(predicted, one_target([[True, True, False]]))
    assert loss.item() == pytest.approx((1 - (2 / 6 - (2 / 6) ** 2) + 0) / 2)


def test_saliency_loss_equals_a_value_computed_by_hand():
    scores, ratings = torch.tensor([[2.0, 0.0, 1.0, 5.0]]), torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    loss = losses.saliency_loss(scores, ratings, torch.tensor([[True, True, True, False]]))
    low_grades = (soft(0 - 2) + soft(0 - 1)) / 2  # 0.01 and 0.3: the first and third clip against the second
    high_grades = soft(math.log(math.exp(0) + math.exp(1)) - 2)  # 0.55 and 0.8: the first against both others
    assert loss.item() == pytest.approx((2 * low_grades + 2 * high_grades) / 4, rel=1e-6)


def test_a_query_with_equal_ratings_does_not_count_in_the_saliency_loss():
    scores, mask = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.ones(2, 2, dtype=torch.bool)
    both = losses.saliency_loss(scores, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), mask)
    first_only = losses.saliency_loss(scores[:1], torch.tensor([[1.0, 0.0]]), mask[:1])
    assert both == first_only > 0
    assert losses.saliency_loss(scores, torch.ones(2, 2), mask) == 0


def test_wrong_query_loss_equals_a_value_computed_by_hand():
    saliency, foreground = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 8.0]])
    loss = losses.wrong_query_loss(saliency, foreground, torch.tensor([[True, True]]), torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx((soft(1) + soft(-2)) / 2 + soft(0.5) * sigmoid(0.5) ** 2, rel=1e-6)


def test_wrong_query_loss_without_negative_pairs_is_zero():
    none = torch.zeros(0, 3, requires_grad=True)
    loss = losses.wrong_query_loss(none, none, none.bool(), none.bool())
    assert loss == 0
    loss.backward()


def contrast(similarity, video, relevant, frame_mask):
    """The loss with every frame of every video as a negative; `similarity` is [b v t]."""
    return losses.contrast_loss(similarity[torch.arange(len(video)), video], similarity, video, relevant, frame_mask)


def test_contrast_loss_equals_a_value_computed_by_hand():
    similarity = torch.tensor([[[3.0, 1.0], [0.0, 2.0]], [[1.0, 9.0], [4.0, 9.0]]])  # [b v t]
    frame_mask = torch.tensor([[True, True], [True, False]])
    loss = contrast(similarity, torch.tensor([0, 1]), torch.tensor([[True, False], [True, False]]), frame_mask)
    # Query 0: its frame 0 (3) against the one real frame of video 1 (0). Query 1: 4 against 1 and 9.
    negatives = math.log(math.exp(1) + math.exp(9))
    assert loss.item() == pytest.approx((soft(0 - 3) + soft(negatives - 4)) / 2, rel=1e-6)


def test_contrast_loss_of_a_batch_about_one_video_is_zero():
    similarity, video = torch.randn(3, 1, 4), torch.zeros(3, dtype=torch.long)
    real = torch.ones(1, 4, dtype=torch.bool)
    assert contrast(similarity, video, torch.ones(3, 4, dtype=torch.bool), real) == 0


# --- properties of all -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One random batch: `logits`, `spans`, `scores` and `similarity` are outputs of a model, the rest are targets."""

    logits: Tensor
    spans: Tensor
    scores: Tensor
    similarity: Tensor
    positive: Tensor
    target_spans: Tensor
    ratings: Tensor
    position_mask: Tensor
    mask: Tensor
    video: Tensor

    @property
    def targets(self) -> MomentTargets:
        return MomentTargets(self.positive, self.target_spans)


def case(*, size: float = 3.0, dtype=torch.float32, seed: int = 0) -> Case:
    """Three sentences about videos 0, 1 and 1, of 7, 4 and 4 clips, at two scales."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([[7], [4], [4]])
    position_mask = torch.cat([mask, torch.arange(4) < torch.tensor([[4], [2], [2]])], 1)
    values = [
        (torch.randint(0, 2, shape, generator=generator) * 2.0 - 1) * size for shape in ((3, 11), (3, 7), (3, 2, 7))
    ]
    if size < 100:
        values = [torch.randn(w.shape, generator=generator) * size for w in values]
    start, reach = torch.rand(3, 11, 2, generator=generator) * 4, 0.0 if size < 100 else size - 10
    return Case(
        logits=values[0].to(dtype),
        spans=torch.stack([start[..., 0] - reach, start.sum(-1) + (reach or size)], -1).to(dtype),
        scores=values[1].to(dtype),
        similarity=values[2].to(dtype),
        positive=(torch.rand(3, 11, generator=generator) < 0.5) & position_mask,
        target_spans=torch.tensor([1.0, 3.0]).expand(3, 11, 2),
        ratings=torch.randint(0, 5, (3, 7), generator=generator) / 4 * mask,
        position_mask=position_mask,
        mask=mask,
        video=torch.tensor([0, 1, 1]),
    )


LOSSES: dict[str, Callable[[Case], Tensor]] = {
    "focal": lambda c: losses.focal_loss(c.logits, c.spans, c.targets, c.position_mask),
    "overlap": lambda c: losses.overlap_loss(c.spans, c.targets),
    "saliency": lambda c: losses.saliency_loss(c.scores, c.ratings, c.mask),
    "wrong_query": lambda c: losses.wrong_query_loss(c.scores, c.logits, c.mask, c.position_mask),
    "contrast": lambda c: contrast(c.similarity, c.video, c.ratings > 0, c.mask[:2]),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [3.0, 1e4, 65504.0])  # the last is the largest float16
def test_no_loss_and_no_gradient_overflows(loss, dtype, size):
    for seed in range(5):
        batch = case(size=size, dtype=dtype, seed=seed)
        outputs = [batch.logits, batch.spans, batch.scores, batch.similarity]
        for tensor in outputs:
            tensor.requires_grad_()
        value = loss(batch)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value >= 0
        value.backward()
        assert all(tensor.grad.isfinite().all() for tensor in outputs if tensor.grad is not None)


OUTPUTS = ("logits", "spans", "scores", "similarity")


def value_and_gradients(loss: Callable[[Case], Tensor], batch: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its gradient for all outputs of the model; zero for outputs that the loss does not use."""
    outputs = {name: getattr(batch, name).clone().requires_grad_() for name in OUTPUTS}
    value = loss(replace(batch, **outputs))
    gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    return value, {
        name: torch.zeros_like(outputs[name]) if gradient is None else gradient
        for name, gradient in zip(outputs, gradients, strict=True)
    }


@every_loss
@pytest.mark.parametrize("garbage", [-1e4, 0.0, 1e4, math.inf, math.nan])
def test_padding_values_change_no_loss(loss, garbage):
    clean, dirty = case(), case()
    dirty.logits[~dirty.position_mask] = garbage
    dirty.spans[~dirty.position_mask] = garbage
    dirty.scores[~dirty.mask] = garbage
    dirty.ratings[~dirty.mask] = 1.0
    # Similarities with the padded frames of any video, the own one included.
    dirty.similarity.masked_fill_(~dirty.mask[None, :2], garbage)
    if loss is LOSSES["contrast"]:
        dirty.ratings[~dirty.mask] = 0.0  # padding is never relevant in a batch
    value, gradients = value_and_gradients(loss, clean)
    other_value, others = value_and_gradients(loss, dirty)
    assert other_value == value
    assert all(torch.equal(others[name], gradients[name]) for name in OUTPUTS)
    assert sum(g.abs().sum() for g in gradients.values()) > 0


def test_positions_without_a_moment_do_not_change_the_overlap_loss():
    clean, dirty = case(), case()
    for tensor in (dirty.logits, dirty.spans):
        tensor[~dirty.positive] = math.nan
    value, gradients = value_and_gradients(LOSSES["overlap"], clean)
    other_value, others = value_and_gradients(LOSSES["overlap"], dirty)
    assert other_value == value and all(torch.equal(others[part], gradients[part]) for part in OUTPUTS)


@every_loss
def test_longer_padding_changes_no_loss_and_no_gradient(loss):
    """More positions behind those of every scale, and more frames behind those of every video, all of them masked."""
    batch = case()
    longer = replace(
        batch,
        logits=F.pad(batch.logits, (0, 4), value=9.0),
        spans=F.pad(batch.spans, (0, 0, 0, 4), value=9.0),
        scores=F.pad(batch.scores, (0, 5), value=9.0),
        similarity=F.pad(batch.similarity, (0, 5), value=9.0),
        positive=F.pad(batch.positive, (0, 4)),
        target_spans=F.pad(batch.target_spans, (0, 0, 0, 4)),
        ratings=F.pad(batch.ratings, (0, 5)),
        position_mask=F.pad(batch.position_mask, (0, 4)),
        mask=F.pad(batch.mask, (0, 5)),
    )
    value, gradients = value_and_gradients(loss, batch)
    other_value, others = value_and_gradients(loss, longer)
    assert other_value.item() == pytest.approx(value.item(), rel=1e-6)
    for name in OUTPUTS:
        length = getattr(batch, name).shape[1 if name == "spans" else -1]
        real, padding = others[name].split(
            [length, others[name].shape[1 if name == "spans" else -1] - length], 1 if name == "spans" else -1
        )
        assert torch.allclose(real, gradients[name], rtol=1e-5, atol=1e-7) and not padding.any()


@pytest.mark.parametrize("level", [0.0, -1e4])
def test_longer_padding_changes_no_loss_over_clips(level):
    batch = case(size=1.0)
    scores, similarity = batch.scores + level, batch.similarity + level
    longer = [F.pad(x, (0, 5)) for x in (scores, batch.ratings, batch.mask)]
    assert losses.saliency_loss(*longer) == losses.saliency_loss(scores, batch.ratings, batch.mask)
    relevant, real = batch.ratings > 0, batch.mask[:2]
    loss = contrast(similarity, batch.video, relevant, real)
    padded = contrast(F.pad(similarity, (0, 5)), batch.video, F.pad(relevant, (0, 5)), F.pad(real, (0, 5)))
    assert padded == loss


@every_loss
def test_the_order_of_queries_and_videos_changes_no_loss(loss):
    batch, order, videos = case(), torch.tensor([2, 0, 1]), torch.tensor([1, 0])
    names = ("logits", "spans", "scores", "similarity", "positive", "target_spans", "ratings", "position_mask", "video")
    permuted = replace(batch, **{name: getattr(batch, name)[order] for name in names})
    if loss is LOSSES["contrast"]:  # its mask has one row for each video
        permuted = replace(
            permuted, similarity=permuted.similarity[:, videos], video=videos[permuted.video], mask=batch.mask[videos]
        )
    else:
        permuted = replace(permuted, mask=batch.mask[order])
    value, gradients = value_and_gradients(loss, batch)
    other_value, others = value_and_gradients(loss, permuted)
    assert other_value.item() == pytest.approx(value.item(), rel=1e-6)
    for name in OUTPUTS:
        expected = gradients[name][order]
        expected = expected[:, videos] if name == "similarity" else expected
        assert torch.allclose(others[name], expected, rtol=1e-5, atol=1e-7)


# --- which moment is assigned to which position ---------------------------------------------------------------------


def plain_assignment(moments, clips: int, strides: tuple[int, ...]) -> list[tuple[float, float] | None]:
    """The moment of each position, or None, computed in plain loops from the docstring of `assign_moments`."""
    positions = [((i + 0.5) * s, s) for s in strides for i in range(math.ceil(clips / s))]

    def fits(at: float, stride: int, moment) -> bool:
        start, end = moment
        farther = max(at - start, end - at)
        high_enough = stride == strides[0] or farther >= stride
        low_enough = stride == strides[-1] or farther < 2 * stride
        return start <= at <= end and abs(at - (start + end) / 2) <= 1.5 * stride and high_enough and low_enough

    matched: list[list[tuple[float, float]]] = [[m for m in moments if fits(*position, m)] for position in positions]
    for moment in moments:
        if not any(moment in matches for matches in matched):
            finest = range(math.ceil(clips / strides[0]))
            matched[min(finest, key=lambda i: abs(positions[i][0] - sum(moment) / 2))].append(moment)
    return [min(matches, key=lambda m: m[1] - m[0]) if matches else None for matches in matched]


@st.composite
def disjoint_moments(draw):
    """Moments of a video as benchmarks have them: at least a clip long, not overlapping, on quarters of a clip."""
    moments: list[tuple[float, float]] = []
    clips, at = draw(st.integers(1, 40)), 0.0
    while len(moments) < 4:
        start, length = at + draw(st.integers(0, 40)) / 4, draw(st.integers(4, 100)) / 4
        if start + length > clips:
            break
        moments.append((start, at := start + length))
    return clips, moments or [(0.0, float(clips))]


def assigned(moments, clips: int, strides: tuple[int, ...], longest: int) -> MomentTargets:
    """`assign_moments` for one query in a batch padded to `longest` clips, with a masked moment after the real ones."""
    centres, position_strides = anchors(longest, strides, CPU)
    rows = torch.tensor([*moments, (0.0, 0.5)])
    moment_mask = torch.tensor([True] * len(moments) + [False])
    position_mask = mask_of_positions(clips, strides, longest)
    return assign_moments(rows[None], moment_mask[None], centres, position_strides, position_mask[None])


def mask_of_positions(clips: int, strides: tuple[int, ...], longest: int) -> Tensor:
    return torch.cat([torch.arange(math.ceil(longest / s)) < math.ceil(clips / s) for s in strides])


@settings(max_examples=150, deadline=None)
@given(disjoint_moments(), st.sampled_from([(1,), (1, 2), (1, 2, 4, 8)]), st.integers(0, 9))
def test_assignment_equals_a_loop_and_every_moment_has_a_position(video, strides, padding):
    clips, moments = video
    targets = assigned(moments, clips, strides, clips + padding)
    position_mask = mask_of_positions(clips, strides, clips + padding)
    assert not targets.positive[0, ~position_mask].any()
    rows = zip(targets.positive[0], targets.spans[0].tolist(), position_mask.tolist(), strict=True)
    result = [tuple(span) if positive else None for positive, span, real in rows if real]
    expected = plain_assignment(moments, clips, strides)
    # If two positions are equally near, either may get a moment that matches none.
    assert sum(moment is not None for moment in result) == sum(moment is not None for moment in expected)
    assert set(result) - {None} == set(moments)
    at_one_position = {moment for moment in moments if expected.count(moment) == 1} | {None}
    assert [m for m in result if m not in at_one_position] == [m for m in expected if m not in at_one_position]


def test_the_shortest_moment_wins_a_position():
    targets = assigned([(0.0, 8.0), (3.0, 5.0)], 8, (1,), 8)
    # Clips 2 to 5 are near the centre of both moments; the two in the middle are inside the short one.
    assert targets.positive[0].nonzero().flatten().tolist() == [2, 3, 4, 5]
    assert targets.spans[0, 2:6].tolist() == [[0.0, 8.0], [3.0, 5.0], [3.0, 5.0], [0.0, 8.0]]


def test_short_moments_go_to_fine_scales_and_long_ones_to_coarse():
    targets = assigned([(0.0, 2.0), (8.0, 24.0)], 32, (1, 2, 4, 8), 32)
    strides = anchors(32, (1, 2, 4, 8), CPU)[1]
    short = targets.positive[0] & (targets.spans[0, :, 0] == 0)
    assert set(strides[short].tolist()) == {1.0}
    assert set(strides[targets.positive[0] & ~short].tolist()) == {8.0}


def test_a_moment_shorter_than_a_clip_is_assigned_to_the_nearest_clip():
    targets = assigned([(3.05, 3.15)], 8, (1, 2), 8)
    assert targets.positive[0].nonzero().flatten().tolist() == [3]

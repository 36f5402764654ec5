"""Each loss against a number worked by hand; none overflows, looks at padding or cares for the order of the batch."""

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
from costl.model.losses import MomentTargets

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


@pytest.mark.parametrize(("quality", "asked"), [(1.0, 1 / 3), (0.0, 1.0), (0.5, 2 / 3)])
def test_focal_loss_asks_a_positive_for_its_overlap_and_all_else_for_nothing(quality, asked):
    """The second position overlaps too, but answers for no moment; the third is padding."""
    logits, targets = torch.tensor([[2.0, -1.0, 7.0]]), one_target([[True, False, False]])
    found = losses.focal_loss(logits, SPANS, targets, torch.tensor([[True, True, False]]), quality=quality)
    assert found.item() == pytest.approx(focal(2, asked) + focal(-1, 0), rel=1e-6)


def test_focal_loss_is_shared_among_the_positives():
    logits, real = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[True, True, True]])
    found = losses.focal_loss(logits, SPANS, one_target([[True, False, True]]), real)
    assert found.item() == pytest.approx((focal(1, 1 / 3) + focal(1, 0) + focal(1, 1)) / 2, rel=1e-6)


def test_focal_loss_teaches_scores_not_spans():
    logits, predicted = torch.tensor([[2.0, -1.0, -1.0]], requires_grad=True), SPANS.clone().requires_grad_()
    found = losses.focal_loss(logits, predicted, one_target([[True, False, True]]), torch.ones(1, 3).bool())
    to_logits, to_spans = torch.autograd.grad(found, (logits, predicted), allow_unused=True)
    assert to_spans is None
    assert to_logits[0, 0] > 0 and to_logits[0, 1] > 0 and to_logits[0, 2] < 0


def test_overlap_loss_is_one_minus_the_distance_iou():
    predicted = torch.tensor([[[2.0, 6.0], [0.0, 4.0], [50.0, 60.0]]])
    found = losses.overlap_loss(predicted, one_target([[True, True, False]]))
    assert found.item() == pytest.approx((1 - (2 / 6 - (2 / 6) ** 2) + 0) / 2)


def test_saliency_loss_by_hand():
    scores, ratings = torch.tensor([[2.0, 0.0, 1.0, 5.0]]), torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    found = losses.saliency_loss(scores, ratings, torch.tensor([[True, True, True, False]]))
    low_grades = (soft(0 - 2) + soft(0 - 1)) / 2  # 0.01 and 0.3: the first and third clip against the second
    high_grades = soft(math.log(math.exp(0) + math.exp(1)) - 2)  # 0.55 and 0.8: the first against both others
    assert found.item() == pytest.approx((2 * low_grades + 2 * high_grades) / 4, rel=1e-6)


def test_a_sentence_whose_clips_are_all_alike_takes_no_part_in_saliency():
    scores, mask = torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.ones(2, 2, dtype=torch.bool)
    both = losses.saliency_loss(scores, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), mask)
    alone = losses.saliency_loss(scores[:1], torch.tensor([[1.0, 0.0]]), mask[:1])
    assert both == alone > 0
    assert losses.saliency_loss(scores, torch.ones(2, 2), mask) == 0


def test_wrong_query_loss_by_hand():
    saliency, foreground = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 8.0]])
    found = losses.wrong_query_loss(saliency, foreground, torch.tensor([[True, True]]), torch.tensor([[True, False]]))
    assert found.item() == pytest.approx((soft(1) + soft(-2)) / 2 + soft(0.5) * sigmoid(0.5) ** 2, rel=1e-6)


def test_wrong_query_loss_without_a_wrong_query_is_zero():
    none = torch.zeros(0, 3, requires_grad=True)
    found = losses.wrong_query_loss(none, none, none.bool(), none.bool())
    assert found == 0
    found.backward()


def contrast(match, video, relevant, frame_mask):
    """The loss where every frame of every video takes part; `match` [b v t]."""
    return losses.contrast_loss(match[torch.arange(len(video)), video], match, video, relevant, frame_mask)


def test_contrast_loss_by_hand():
    match = torch.tensor([[[3.0, 1.0], [0.0, 2.0]], [[1.0, 9.0], [4.0, 9.0]]])  # [b v t]
    frame_mask = torch.tensor([[True, True], [True, False]])
    found = contrast(match, torch.tensor([0, 1]), torch.tensor([[True, False], [True, False]]), frame_mask)
    # Sentence 0: its frame 0 (3) against the one real frame of video 1 (0). Sentence 1: 4 against 1 and 9.
    rivals = math.log(math.exp(1) + math.exp(9))
    assert found.item() == pytest.approx((soft(0 - 3) + soft(rivals - 4)) / 2, rel=1e-6)


def test_contrast_loss_of_a_batch_about_one_video_is_zero():
    match, video = torch.randn(3, 1, 4), torch.zeros(3, dtype=torch.long)
    real = torch.ones(1, 4, dtype=torch.bool)
    assert contrast(match, video, torch.ones(3, 4, dtype=torch.bool), real) == 0


# --- properties of all -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One random batch; `logits`, `spans`, `scores` and `match` are what a model says, the rest is truth."""

    logits: Tensor
    spans: Tensor
    scores: Tensor
    match: Tensor
    positive: Tensor
    truth: Tensor
    ratings: Tensor
    positions: Tensor
    mask: Tensor
    video: Tensor

    @property
    def targets(self) -> MomentTargets:
        return MomentTargets(self.positive, self.truth)


def case(*, size: float = 3.0, dtype=torch.float32, seed: int = 0) -> Case:
    """Three sentences about videos 0, 1 and 1, of 7, 4 and 4 clips, at two scales."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([[7], [4], [4]])
    positions = torch.cat([mask, torch.arange(4) < torch.tensor([[4], [2], [2]])], 1)
    wild = [(torch.randint(0, 2, shape, generator=draw) * 2.0 - 1) * size for shape in ((3, 11), (3, 7), (3, 2, 7))]
    if size < 100:
        wild = [torch.randn(w.shape, generator=draw) * size for w in wild]
    start, reach = torch.rand(3, 11, 2, generator=draw) * 4, 0.0 if size < 100 else size - 10
    return Case(
        logits=wild[0].to(dtype),
        spans=torch.stack([start[..., 0] - reach, start.sum(-1) + (reach or size)], -1).to(dtype),
        scores=wild[1].to(dtype),
        match=wild[2].to(dtype),
        positive=(torch.rand(3, 11, generator=draw) < 0.5) & positions,
        truth=torch.tensor([1.0, 3.0]).expand(3, 11, 2),
        ratings=torch.randint(0, 5, (3, 7), generator=draw) / 4 * mask,
        positions=positions,
        mask=mask,
        video=torch.tensor([0, 1, 1]),
    )


LOSSES: dict[str, Callable[[Case], Tensor]] = {
    "focal": lambda c: losses.focal_loss(c.logits, c.spans, c.targets, c.positions),
    "plain focal": lambda c: losses.focal_loss(c.logits, c.spans, c.targets, c.positions, quality=0.0),
    "overlap": lambda c: losses.overlap_loss(c.spans, c.targets),
    "saliency": lambda c: losses.saliency_loss(c.scores, c.ratings, c.mask),
    "wrong_query": lambda c: losses.wrong_query_loss(c.scores, c.logits, c.mask, c.positions),
    "contrast": lambda c: contrast(c.match, c.video, c.ratings > 0, c.mask[:2]),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [3.0, 1e4, 65504.0])  # the last is the largest float16
def test_no_loss_overflows_and_neither_does_its_gradient(loss, dtype, size):
    for seed in range(5):
        given = case(size=size, dtype=dtype, seed=seed)
        said = [given.logits, given.spans, given.scores, given.match]
        for tensor in said:
            tensor.requires_grad_()
        value = loss(given)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value >= 0
        value.backward()
        assert all(tensor.grad.isfinite().all() for tensor in said if tensor.grad is not None)


SAID = ("logits", "spans", "scores", "match")


def value_and_gradients(loss: Callable[[Case], Tensor], given: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The number, and its gradient to all that a model says; zero to what the loss does not look at."""
    said = {name: getattr(given, name).clone().requires_grad_() for name in SAID}
    value = loss(replace(given, **said))
    found = torch.autograd.grad(value, list(said.values()), allow_unused=True)
    return value, {name: torch.zeros_like(said[name]) if g is None else g for name, g in zip(said, found, strict=True)}


@every_loss
@pytest.mark.parametrize("garbage", [-1e4, 0.0, 1e4, math.inf, math.nan])
def test_no_loss_looks_at_padding(loss, garbage):
    clean, dirty = case(), case()
    dirty.logits[~dirty.positions] = garbage
    dirty.spans[~dirty.positions] = garbage
    dirty.scores[~dirty.mask] = garbage
    dirty.ratings[~dirty.mask] = 1.0
    # What a sentence matches in the padded frames of any video, its own included.
    dirty.match.masked_fill_(~dirty.mask[None, :2], garbage)
    if loss is LOSSES["contrast"]:
        dirty.ratings[~dirty.mask] = 0.0  # the batch says which clips are relevant, never padding
    value, gradients = value_and_gradients(loss, clean)
    found, others = value_and_gradients(loss, dirty)
    assert found == value
    assert all(torch.equal(others[name], gradients[name]) for name in SAID)
    assert sum(g.abs().sum() for g in gradients.values()) > 0


def test_the_overlap_loss_looks_at_no_position_that_answers_for_nothing():
    clean, dirty = case(), case()
    for tensor in (dirty.logits, dirty.spans):
        tensor[~dirty.positive] = math.nan
    value, gradients = value_and_gradients(LOSSES["overlap"], clean)
    found, others = value_and_gradients(LOSSES["overlap"], dirty)
    assert found == value and all(torch.equal(others[part], gradients[part]) for part in SAID)


@every_loss
def test_longer_padding_changes_no_loss_and_no_gradient(loss):
    """More positions behind those of every scale, and more frames behind those of every video, all of them masked."""
    given = case()
    longer = replace(
        given,
        logits=F.pad(given.logits, (0, 4), value=9.0),
        spans=F.pad(given.spans, (0, 0, 0, 4), value=9.0),
        scores=F.pad(given.scores, (0, 5), value=9.0),
        match=F.pad(given.match, (0, 5), value=9.0),
        positive=F.pad(given.positive, (0, 4)),
        truth=F.pad(given.truth, (0, 0, 0, 4)),
        ratings=F.pad(given.ratings, (0, 5)),
        positions=F.pad(given.positions, (0, 4)),
        mask=F.pad(given.mask, (0, 5)),
    )
    value, gradients = value_and_gradients(loss, given)
    found, others = value_and_gradients(loss, longer)
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    for name in SAID:
        length = getattr(given, name).shape[1 if name == "spans" else -1]
        here, behind = others[name].split(
            [length, others[name].shape[1 if name == "spans" else -1] - length], 1 if name == "spans" else -1
        )
        assert torch.allclose(here, gradients[name], rtol=1e-5, atol=1e-7) and not behind.any()


@pytest.mark.parametrize("level", [0.0, -1e4])
def test_longer_padding_changes_no_loss_over_clips(level):
    given = case(size=1.0)
    scores, match = given.scores + level, given.match + level
    longer = [F.pad(x, (0, 5)) for x in (scores, given.ratings, given.mask)]
    assert losses.saliency_loss(*longer) == losses.saliency_loss(scores, given.ratings, given.mask)
    relevant, real = given.ratings > 0, given.mask[:2]
    found = contrast(match, given.video, relevant, real)
    padded = contrast(F.pad(match, (0, 5)), given.video, F.pad(relevant, (0, 5)), F.pad(real, (0, 5)))
    assert padded == found


@every_loss
def test_no_loss_depends_on_the_order_of_sentences_or_of_videos(loss):
    given, order, videos = case(), torch.tensor([2, 0, 1]), torch.tensor([1, 0])
    names = ("logits", "spans", "scores", "match", "positive", "truth", "ratings", "positions", "video")
    turned = replace(given, **{name: getattr(given, name)[order] for name in names})
    if loss is LOSSES["contrast"]:  # whose mask is one of videos
        turned = replace(turned, match=turned.match[:, videos], video=videos[turned.video], mask=given.mask[videos])
    else:
        turned = replace(turned, mask=given.mask[order])
    value, gradients = value_and_gradients(loss, given)
    found, others = value_and_gradients(loss, turned)
    assert found.item() == pytest.approx(value.item(), rel=1e-6)
    for name in SAID:
        expected = gradients[name][order]
        expected = expected[:, videos] if name == "match" else expected
        assert torch.allclose(others[name], expected, rtol=1e-5, atol=1e-7)


# --- which position answers for which moment ---------------------------------------------------------------------


def plain_assignment(moments, clips: int, strides: tuple[int, ...]) -> list[tuple[float, float] | None]:
    """Position by position: the moment it answers for, after the words of the docstring."""
    places = [((i + 0.5) * s, s) for s in strides for i in range(math.ceil(clips / s))]

    def fits(at: float, stride: int, moment) -> bool:
        start, end = moment
        farther = max(at - start, end - at)
        high_enough = stride == strides[0] or farther >= stride
        low_enough = stride == strides[-1] or farther < 2 * stride
        return start <= at <= end and abs(at - (start + end) / 2) <= 1.5 * stride and high_enough and low_enough

    answers: list[list[tuple[float, float]]] = [[m for m in moments if fits(*place, m)] for place in places]
    for moment in moments:
        if not any(moment in mine for mine in answers):
            finest = range(math.ceil(clips / strides[0]))
            answers[min(finest, key=lambda i: abs(places[i][0] - sum(moment) / 2))].append(moment)
    return [min(mine, key=lambda m: m[1] - m[0]) if mine else None for mine in answers]


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
    """`assign_moments` for one sentence in a batch padded to `longest` clips, with a masked moment beside the real."""
    centres, widths = anchors(longest, strides, CPU)
    positions = torch.cat([torch.arange(math.ceil(longest / s)) < math.ceil(clips / s) for s in strides])
    rows = torch.tensor([*moments, (0.0, 0.5)])
    real = torch.tensor([True] * len(moments) + [False])
    return losses.assign_moments(rows[None], real[None], centres, widths, positions[None])


@settings(max_examples=150, deadline=None)
@given(disjoint_moments(), st.sampled_from([(1,), (1, 2), (1, 2, 4, 8)]), st.integers(0, 9))
def test_positions_answer_as_the_plain_loop_says_and_every_moment_gets_one(video, strides, padding):
    clips, moments = video
    found = assigned(moments, clips, strides, clips + padding)
    longest = clips + padding
    real = torch.cat([torch.arange(math.ceil(longest / s)) < math.ceil(clips / s) for s in strides])
    assert not found.positive[0, ~real].any()
    answers = [
        tuple(span) if yes else None for yes, span in zip(found.positive[0], found.spans[0].tolist(), strict=True)
    ]
    answers = [answer for answer, yes in zip(answers, real.tolist(), strict=True) if yes]
    expected = plain_assignment(moments, clips, strides)
    # Where two positions are equally near, either may be given a moment that none fits.
    assert sum(a is not None for a in answers) == sum(e is not None for e in expected)
    assert set(answers) - {None} == set(moments)
    lonely = {m for m in moments if expected.count(m) == 1}
    assert [a for a in answers if a not in lonely | {None}] == [e for e in expected if e not in lonely | {None}]


def test_the_shortest_moment_wins_a_position():
    found = assigned([(0.0, 8.0), (3.0, 5.0)], 8, (1,), 8)
    # Clips 2 to 5 lie around the middle of both; the two in the middle are inside the short one.
    assert found.positive[0].nonzero().flatten().tolist() == [2, 3, 4, 5]
    assert found.spans[0, 2:6].tolist() == [[0.0, 8.0], [3.0, 5.0], [3.0, 5.0], [0.0, 8.0]]


def test_scales_share_the_lengths_between_them():
    found = assigned([(0.0, 2.0), (8.0, 24.0)], 32, (1, 2, 4, 8), 32)
    strides = anchors(32, (1, 2, 4, 8), CPU)[1]
    short = found.positive[0] & (found.spans[0, :, 0] == 0)
    assert set(strides[short].tolist()) == {1.0}
    assert set(strides[found.positive[0] & ~short].tolist()) == {8.0}


def test_a_moment_shorter_than_a_clip_is_given_to_the_nearest_one():
    found = assigned([(3.05, 3.15)], 8, (1, 2), 8)
    assert found.positive[0].nonzero().flatten().tolist() == [3]

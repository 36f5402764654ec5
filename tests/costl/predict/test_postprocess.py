"""Predictions: for any output of the heads, windows are inside the video, sorted and finite, and there is one at least."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costl.config import Predict
from costl.data.annotations import Prediction, Query
from costl.predict.postprocess import CANDIDATES, MIN_LENGTH_CLIPS, ModelOutput, to_predictions


def predict(
    spans, scores, *, duration=20.0, clip_s=2.0, position_mask=None, moments=10, min_score=0.0, round_s=None
) -> Prediction:
    """The prediction for one sentence; `spans` in clips."""
    rows = torch.tensor(spans, dtype=torch.float32).reshape(1, -1, 2)
    real = torch.ones(rows.shape[:2], dtype=torch.bool) if position_mask is None else torch.tensor([position_mask])
    (prediction,) = to_predictions(
        [Query(7, "a cat", "v", duration)],
        ModelOutput(
            scores=torch.tensor([scores], dtype=torch.float32),
            spans=rows,
            position_mask=real,
            centres=torch.zeros(rows.shape[1]),
            saliency=torch.arange(12.0)[None],
        ),
        Predict(moments=moments, nms_sigma=0.5, min_score=min_score, round_s=round_s),
        clips=[3],
        clip_s=clip_s,
    )
    return prediction


edge = st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, -0.0, 1.0, 1e-7, 10.0, 1e6]))
spans = st.tuples(edge, edge).map(sorted)
rows = st.lists(st.tuples(spans, st.floats(0, 1, width=32)), min_size=1, max_size=20)


@settings(max_examples=150)
@given(rows, st.one_of(st.floats(0.01, 5), st.floats(5, 1e4)), st.sampled_from([0.1, 0.5, 1.0, 2.0]))
def test_windows_are_inside_the_video_sorted_and_finite(rows, duration, clip_s):
    prediction = predict(
        [row[0] for row in rows], [row[1] for row in rows], duration=duration, clip_s=clip_s, min_score=0.5
    )
    assert 1 <= len(prediction.windows) <= 10
    for start, end, score in prediction.windows:
        assert all(map(math.isfinite, (start, end, score)))
        assert 0 <= start < end <= duration
        assert 0 <= score <= 1
        assert end - start >= min(MIN_LENGTH_CLIPS * clip_s, duration) * (1 - 1e-6)
    scores = [score for *_, score in prediction.windows]
    assert scores == sorted(scores, reverse=True)


def test_spans_in_clips_become_seconds():
    prediction = predict([(1.0, 3.5), (6.0, 9.0)], [0.5, 0.75], clip_s=2.0)
    assert prediction.windows == ((12.0, 18.0, 0.75), (2.0, 7.0, 0.5))
    assert (prediction.qid, prediction.query, prediction.vid) == (7, "a cat", "v")


def test_moments_that_round_to_the_same_are_one():
    spans = [(1.1, 3.4), (0.8, 3.1), (6.0, 9.0)]
    assert len(predict(spans, [0.5, 0.25, 0.75]).windows) == 3
    assert predict(spans, [0.5, 0.25, 0.75], round_s=2.0).windows == ((12.0, 18.0, 0.75), (2.0, 6.0, 0.5))


def test_windows_are_clipped_to_the_video_and_points_grow():
    assert predict([(-3.0, 4.0)], [1.0]).windows == ((0.0, 8.0, 1.0),)
    assert predict([(8.0, 99.0)], [1.0]).windows == ((16.0, 20.0, 1.0),)
    assert predict([(5.0, 5.0)], [1.0]).windows == ((9.75, 10.25, 1.0),)
    assert predict([(50.0, 60.0)], [1.0]).windows == ((19.5, 20.0, 1.0),)  # all of it beyond the end


@pytest.mark.parametrize("duration", [0.01, 0.1, 0.4999, 0.5])
def test_a_video_shorter_than_any_window_is_the_window(duration):
    (window,) = predict([(0.2, 0.21)], [0.5], duration=duration, clip_s=2.0).windows
    assert window[:2] == pytest.approx((0.0, duration))


def test_saliency_is_that_of_the_real_clips():
    assert predict([(0.0, 1.0)], [1.0]).saliency == (0.0, 1.0, 2.0)


def test_padded_positions_are_never_windows():
    prediction = predict([(0.0, 1.0), (4.0, 5.0)], [0.25, 1.0], position_mask=[True, False])
    assert prediction.windows == ((0.0, 2.0, 0.25),)


def test_the_best_window_is_kept_and_no_more_than_moments():
    spans, scores = [(i, i + 1.0) for i in range(0, 10, 2)], [0.0625, 0.5, 0.25, 0.125, 0.75]
    assert [w[2] for w in predict(spans, scores, min_score=0.25).windows] == [0.75, 0.5, 0.25]
    assert [w[2] for w in predict(spans, scores, min_score=1.0).windows] == [0.75]
    assert [w[2] for w in predict(spans, scores, moments=2).windows] == [0.75, 0.5]


def test_a_duplicate_ranks_behind_another_moment():
    prediction = predict([(0.0, 2.0), (0.0, 2.0), (6.0, 8.0)], [0.75, 0.5, 0.25])
    assert [w[:2] for w in prediction.windows] == [(0.0, 4.0), (12.0, 16.0), (0.0, 4.0)]


def test_queries_of_a_batch_do_not_affect_each_other():
    queries = [Query(1, "a", "v", 4.0), Query(2, "b", "w", 40.0)]
    spans = torch.tensor([[[0.0, 1.0]] * 80, [[3.0, 19.0]] * 80])
    first, second = to_predictions(
        queries,
        ModelOutput(
            scores=torch.full((2, 80), 0.5),
            spans=spans,
            position_mask=torch.arange(80) < torch.tensor([[2], [CANDIDATES + 20]]),
            centres=torch.zeros(80),
            saliency=torch.zeros(2, 20),
        ),
        Predict(moments=100),
        clips=[2, 20],
        clip_s=2.0,
    )
    assert (len(first.windows), len(second.windows)) == (2, CANDIDATES)
    assert (first.windows[0][:2], second.windows[0][:2]) == ((0.0, 2.0), (6.0, 38.0))
    assert (len(first.saliency), len(second.saliency)) == (2, 20)

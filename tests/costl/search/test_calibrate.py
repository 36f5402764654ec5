"""Calibrated scores: exact laws and separable pairs with known answers."""

import itertools

import numpy as np
import pytest

from costl.pipeline.errors import UsageError
from costl.search.calibrate import (
    AbsentLevels,
    ElsewhereLevels,
    PairCalibration,
    auroc,
    fit_pairs,
    ordinary_sentences,
    relative_sentence,
)


def gumbel(rng, count, location=5.0, scale=2.0):
    """Maxima of 1,000 exponential variables follow this law nearly exactly."""
    return location + scale * (rng.exponential(size=(count, 1000)).max(axis=1) - np.log(1000))


def pairs(rng, count, best, level):
    logits = rng.normal(best, 1.0, count)
    return 1 / (1 + np.exp(-logits)), rng.normal(level, 1.0, count)


def test_the_ordinary_sentences_are_many_and_different():
    sentences = ordinary_sentences()
    assert len(set(sentences)) == len(sentences) >= 200
    assert all(sentence == sentence.strip() and len(sentence.split()) >= 3 for sentence in sentences)


def test_a_relative_sentence_loses_what_all_clips_share():
    rng = np.random.default_rng(0)
    ordinary, sentences, clips = (rng.normal(size=(count, 6)) for count in (30, 2, 5))
    expected = [[clip @ sentence - np.mean(ordinary @ clip) for clip in clips] for sentence in sentences]
    assert relative_sentence(sentences, ordinary) @ clips.T == pytest.approx(np.array(expected))


def test_scores_are_shares_of_absent_sentences():
    rng = np.random.default_rng(0)
    law = AbsentLevels.of(gumbel(rng, 2000))
    later = law.score(gumbel(rng, 2000))
    for share in (0.5, 0.8, 0.9, 0.95, 0.99):
        assert np.mean(later < share) == pytest.approx(share, abs=0.02)


def test_true_sentences_in_the_bank_make_scores_a_little_lower():
    rng = np.random.default_rng(0)
    levels = gumbel(rng, 2000)
    clean = AbsentLevels.of(levels).score(np.array([10.0]))
    levels[:200] += 100  # one sentence in ten is true in the library
    assert clean - 0.08 < AbsentLevels.of(levels).score(np.array([10.0])) < clean


@pytest.mark.parametrize(("shift", "stretch"), [(3.0, 1.0), (-40.0, 1.0), (0.0, 0.01), (1.0, 100.0)])
def test_scores_do_not_depend_on_the_scale_of_similarities(shift, stretch):
    levels = gumbel(np.random.default_rng(1), 200)
    queries = np.linspace(0, 20, 9)
    expected = AbsentLevels.of(levels).score(queries)
    assert AbsentLevels.of(shift + stretch * levels).score(shift + stretch * queries) == pytest.approx(expected)


def test_scores_rise_with_the_level_and_stay_in_range():
    law = AbsentLevels(location=5.0, scale=2.0)
    scores = law.score(np.array([-1e9, 0.0, 5.0, 6.0, 20.0, 1e9]))
    assert (np.diff(scores) > 0).all()
    assert (scores[0], scores[-1]) == (0.0, 1.0)
    assert scores[2] == pytest.approx(np.exp(-1))


def test_equal_levels_give_finite_scores():
    assert AbsentLevels.of(np.full(50, 3.0)).score(np.array([2.0, 4.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("levels", [np.zeros(19), np.zeros(0), np.append(np.zeros(30), np.nan)])
def test_too_few_or_non_finite_levels_are_refused(levels):
    with pytest.raises(UsageError, match="levels of ordinary sentences"):
        AbsentLevels.of(levels)


def test_a_picture_scores_by_its_rank_among_pictures_that_are_elsewhere():
    """Ten levels have eleven gaps: a level in the middle of one is halfway between two ranks."""
    elsewhere = ElsewhereLevels(np.arange(10, dtype=float)[::-1], logit_scale=50.0)
    levels = np.array([-60.0, -50.0, 0.0, 4.0, 8.5, 9.0, 29.5, 50.0, 60.0])
    expected = np.array([0, 0, 1, 5, 9.5, 10, 10.5, 11, 11]) / 11
    np.testing.assert_allclose(elsewhere.score(levels), expected)


def test_one_new_picture_in_ten_reaches_nine_tenths():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 101))
    scores = [ElsewhereLevels(row[:100], logit_scale=100.0).score(row[100:])[0] for row in draws]
    assert np.mean(np.array(scores) >= 0.9) == pytest.approx(0.1, abs=0.02)


def test_without_pictures_elsewhere_the_score_is_that_of_the_cosine():
    elsewhere = ElsewhereLevels(np.empty(0), logit_scale=50.0)
    np.testing.assert_allclose(elsewhere.score(50.0 * np.array([-1, 0, 0.8, 1])), [0, 0.5, 0.9, 1])


def test_equal_pictures_give_finite_scores_that_rise():
    """A library that has every video twice."""
    scores = ElsewhereLevels(np.full(30, 50.0), logit_scale=50.0).score(np.linspace(-50, 50, 99))
    assert np.isfinite(scores).all() and (np.diff(scores) >= 0).all() and scores[-1] == 1


def test_both_features_separate_what_neither_does_alone():
    rng = np.random.default_rng(0)
    present = pairs(rng, 400, 2.0, 3.0)
    foreign = pairs(rng, 400, -2.0, 3.0)  # similar to the encoder, refused by the model
    swapped = pairs(rng, 400, 2.0, -1.0)  # the other way round
    absent = tuple(np.concatenate(both) for both in zip(foreign, swapped, strict=True))
    calibration = fit_pairs(present=present, absent=absent)
    together = auroc(calibration.score(*present), calibration.score(*absent))
    assert together > max(auroc(present[0], absent[0]), auroc(present[1], absent[1])) + 0.05


def test_weights_are_those_of_the_log_odds():
    # Of two normal laws with unit variance the log odds are linear: slopes are the differences of the means.
    rng = np.random.default_rng(0)
    calibration = fit_pairs(present=pairs(rng, 20_000, 1.0, 0.5), absent=pairs(rng, 20_000, -1.0, -0.5))
    assert calibration.weights == pytest.approx((2.0, 1.0, 0.0), abs=0.1)


def test_more_pairs_of_one_kind_do_not_move_the_scores():
    rng = np.random.default_rng(0)
    present, absent = pairs(rng, 300, 1.0, 1.0), pairs(rng, 300, -1.0, -1.0)
    tripled = tuple(np.tile(values, 3) for values in absent)
    expected = fit_pairs(present=present, absent=absent)
    assert fit_pairs(present=present, absent=tripled).weights == pytest.approx(expected.weights)


@pytest.mark.parametrize("lost", [0.01, 0.03, 0.1])
def test_a_threshold_loses_at_most_the_stated_share(lost):
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(300):
        calibration = PairCalibration((1.0, 0.0, 0.0), tuple(np.sort(rng.random(150))))
        losses.append(calibration.threshold(lost))  # uniform scores: the threshold is the share lost
    assert np.mean(losses) <= lost * 1.1


def test_a_threshold_is_the_last_one_that_keeps_the_promise():
    calibration = PairCalibration((1.0, 0.0, 0.0), tuple(i / 100 for i in range(1, 100)))
    # Of 99 scores and a new one, each rank is equally likely: the third lowest is reached from below by 3 of 100.
    assert calibration.threshold(0.03) == 0.03
    assert calibration.threshold(0.029) == 0.02
    assert calibration.threshold(0.0) == 0.0


@pytest.mark.parametrize("lost", [-0.1, 1.0, float("nan")])
def test_an_impossible_share_is_refused(lost):
    with pytest.raises(UsageError, match="share of true moments"):
        PairCalibration((1.0, 0.0, 0.0), (0.5,)).threshold(lost)


def test_too_few_pairs_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="19 pairs to calibrate"):
        fit_pairs(present=pairs(rng, 300, 1, 1), absent=pairs(rng, 19, -1, -1))


def test_separable_pairs_and_extreme_scores_stay_finite():
    ones, zeros = np.ones(30), np.zeros(30)
    calibration = fit_pairs(present=(ones, 90 * ones), absent=(zeros, zeros))
    assert np.isfinite(calibration.weights).all()
    assert calibration.score(np.array([0.0, 1.0]), np.array([-1e6, 1e6])).tolist() == pytest.approx([0.0, 1.0])


def test_auroc_is_the_share_of_pairs_won():
    rng = np.random.default_rng(0)
    present, absent = rng.integers(0, 9, 30), rng.integers(-3, 6, 40)
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(present, absent)]
    assert auroc(present, absent) == pytest.approx(np.mean(won))
    assert np.isnan(auroc([], absent))

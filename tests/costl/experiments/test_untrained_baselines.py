"""References for a trained model: chance, and zero-shot CLIP with its best settings."""

from __future__ import annotations

import numpy as np
import pytest

from costl.config import Config
from costl.data.annotations import Query
from costl.data.queries import read_queries
from costl.experiments.untrained_baselines import ZeroShot, chance, choose_zero_shot, zero_shot, zero_shot_prediction
from costl.pipeline.cache.reader import CacheReader

QUERY = Query(1, "a star", "v", 20.0)


@pytest.fixture
def features(world) -> CacheReader:
    return CacheReader(world.cache)


def test_chance_is_the_same_each_time_and_low(features):
    first, again = (chance(features, "test", Config()) for _ in range(2))
    assert first == again
    assert 0 < first["MR-full-mIoU"] < 50
    assert first["MR-full-R1@0.7"] < first["MR-full-R1@0.5"] < first["MR-full-R1@0.3"] < 80


def test_chance_agrees_with_a_plain_simulation(features):
    lengths = [e - s for q in read_queries(features, "train") for s, e in q.windows]
    rng, ious = np.random.default_rng(5), []
    for _ in range(2000):
        for query in read_queries(features, "test"):
            length = min(rng.choice(lengths), query.duration_s)
            start = rng.uniform(0, query.duration_s - length)
            ious.append(max(_iou((start, start + length), window) for window in query.windows))
    expected = 100 * np.mean(np.array(ious) >= 0.3)
    assert chance(features, "test", Config())["MR-full-R1@0.3"] == pytest.approx(expected, abs=12)


def test_a_clear_moment_is_found_with_any_settings():
    curve = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 0], dtype=float)
    for levels in ((0.5,), (0.7,), (0.3, 0.6, 0.9)):
        best = zero_shot_prediction(QUERY, curve, 0.5, ZeroShot(0.0, levels)).windows[0]
        assert best[:2] == (6.0, 12.0)


def test_several_levels_give_nested_moments_each_once():
    curve = np.array([0, 1, 2, 1, 0, 0, 0, 0, 0, 0], dtype=float)
    windows = zero_shot_prediction(QUERY, curve, 0.5, ZeroShot(0.0, (0.2, 0.3, 0.8, 0.9))).windows
    assert {window[:2] for window in windows} == {(2.0, 8.0), (4.0, 6.0)}
    assert list(windows) == sorted(windows, key=lambda w: -w[2])


def test_smoothing_joins_moments_across_a_short_dip():
    curve = np.array([0, 0, 0, 1, 0.2, 1, 1, 0, 0, 0], dtype=float)
    rough = zero_shot_prediction(QUERY, curve, 0.5, ZeroShot(0.0, (0.5,))).windows
    smooth = zero_shot_prediction(QUERY, curve, 0.5, ZeroShot(1.0, (0.5,))).windows
    assert len(rough) == 2 and [window[:2] for window in smooth] == [(6.0, 14.0)]


def test_smoothing_does_not_pad_at_the_ends():
    flat = zero_shot_prediction(QUERY, np.full(10, 0.3), 0.5, ZeroShot(2.0, (0.5,)))
    assert flat.saliency == pytest.approx([0.3] * 10)


def test_a_video_of_one_clip_has_a_moment():
    prediction = zero_shot_prediction(Query(1, "a", "v", 1.5), np.array([0.2]), 0.5, ZeroShot())
    assert [window[:2] for window in prediction.windows] == [(0.0, 1.5)]


def test_the_curve_is_the_cosine_of_frame_and_sentence(features):
    query = read_queries(features, "test")[0]
    sentence = features.words(query.query).sentence
    frames = features.joint_vectors(query.vid)
    cosines = [float(np.dot(f, sentence) / np.linalg.norm(f) / np.linalg.norm(sentence)) for f in frames]
    prediction = zero_shot_prediction(query, frames @ sentence, features.fps, ZeroShot(0.0, (0.5,)))
    assert prediction.saliency == pytest.approx(cosines, abs=1e-5)


def test_the_best_settings_on_validation_are_chosen(features):
    settings, how = choose_zero_shot(features, Config())
    others = (ZeroShot(), ZeroShot(1.0, (0.5,)), ZeroShot(2.0, (0.7,)))
    chosen, *rest = (row["MR-full-mAP"] for row in zero_shot(features, "val", Config(), settings, *others))
    assert all(score <= chosen for score in rest)
    assert "the best of 20 by MR-full-mAP on validation" in how


def test_without_validation_the_settings_are_the_defaults(world, tmp_path):
    copy = world.copy(tmp_path, val=None)
    settings, how = choose_zero_shot(CacheReader(copy.cache), Config())
    assert settings == ZeroShot() and "no validation split" in how


def _iou(a, b) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)

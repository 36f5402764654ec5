"""References for a trained model: chance, and zero-shot CLIP."""

from __future__ import annotations

import numpy as np
import pytest

from costl.config import Config
from costl.data.queries import read_queries
from costl.experiments.untrained_baselines import chance, zero_shot
from costl.pipeline.cache.reader import CacheReader
from costl.predict.zero_shot import zero_shot_prediction
from costl.search.moments import find_segments


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


def test_saliency_is_the_cosine_and_moments_are_segments_of_it(features):
    query = read_queries(features, "test")[0]
    sentence = features.words(query.query).sentence
    frames = features.joint_vectors(query.vid)
    cosines = [float(np.dot(f, sentence) / np.linalg.norm(f) / np.linalg.norm(sentence)) for f in frames]
    prediction = zero_shot_prediction(query, features)
    assert prediction.saliency == pytest.approx(cosines, abs=1e-5)
    segments = find_segments(np.array(cosines), logit_scale=features.joint.logit_scale)
    assert [window[:2] for window in prediction.windows] == [(s.start / features.fps, s.end / features.fps) for s in segments]
    assert prediction.windows[0][2] == 1.0


def test_the_numbers_are_those_of_the_predictions(features):
    queries = read_queries(features, "test")
    top = [zero_shot_prediction(query, features).windows[0] for query in queries]
    hits = [max(_iou(window, truth) for truth in query.windows) >= 0.5 for window, query in zip(top, queries, strict=True)]
    assert zero_shot(features, "test", Config())["MR-full-R1@0.5"] == pytest.approx(100 * np.mean(hits), abs=0.01)


def _iou(a, b) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)

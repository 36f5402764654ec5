"""A trained model is compared with CLIP alone on the same queries, with an interval over videos."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from costl.config import Config
from costl.data.annotations import Prediction, Query
from costl.data.queries import read_queries
from costl.metrics.compute import measure
from costl.pipeline.cache.reader import CacheReader
from costl.predict.zero_shot import zero_shot_prediction
from costl.predict.zero_shot_comparison import ZeroShotComparison, compare_with_zero_shot
from costl.train import train

CONFIG = Config()


@pytest.fixture
def features(world) -> CacheReader:
    return CacheReader(world.cache)


def perfect(query: Query) -> Prediction:
    windows = tuple((start, end, 1.0 - 0.1 * rank) for rank, (start, end) in enumerate(query.windows))
    return Prediction(query.qid, query.query, query.vid, windows)


def test_the_interval_is_that_of_means_of_resampled_videos(features):
    queries = read_queries(features, "val")
    truth = [perfect(query) for query in queries]
    found = compare_with_zero_shot(truth, features, queries, CONFIG)
    alone = measure([zero_shot_prediction(query, features) for query in queries], queries)[1]["MR-full-mAP"]
    differences = 100 - alone
    assert found.trained == pytest.approx(100) and found.zero_shot == pytest.approx(np.mean(alone))
    vids = sorted({query.vid for query in queries})
    of_video = {vid: differences[[query.vid == vid for query in queries]] for vid in vids}
    rng = np.random.default_rng(4)
    draws = [np.concatenate([of_video[vid] for vid in rng.choice(vids, len(vids))]).mean() for _ in range(10_000)]
    assert found.interval == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=1.5)
    assert (found.queries, found.videos) == (len(queries), len(vids))
    assert found.is_better and "label more" not in found.message()


def test_clip_compared_with_itself_is_not_better(features):
    queries = read_queries(features, "val")
    alone = [zero_shot_prediction(query, features) for query in queries]
    found = compare_with_zero_shot(alone, features, queries, CONFIG)
    assert found.trained == found.zero_shot and found.interval == (0.0, 0.0)
    assert not found.is_better and found.message().endswith("search without it, or label more.")


def test_a_single_video_has_no_interval_and_proves_nothing(features):
    queries = read_queries(features, "val")
    one = [query for query in queries if query.vid == queries[0].vid]
    found = compare_with_zero_shot([perfect(query) for query in one], features, one, CONFIG)
    assert found.interval is None and not found.is_better and "difference +" in found.message()


def test_features_without_a_joint_space_are_not_compared(features, monkeypatch):
    monkeypatch.setattr(features, "joint", replace(features.joint, is_known=False))
    assert compare_with_zero_shot([], features, read_queries(features, "val"), CONFIG) is None


def test_a_metric_that_the_labels_do_not_give_is_not_compared(features):
    config = replace(CONFIG, train=replace(CONFIG.train, select="HL-none"))
    assert compare_with_zero_shot([], features, read_queries(features, "val"), config) is None


@pytest.mark.parametrize(("interval", "is_better"), [((0.1, 3.0), True), ((-0.1, 3.0), False), ((0.0, 3.0), False)])
def test_only_an_interval_above_zero_is_better(interval, is_better):
    assert ZeroShotComparison("MR-full-mAP", 40.0, 38.0, interval, 10, 5).is_better is is_better


def test_the_end_of_a_training_says_whether_it_was_worth_it(world, tmp_path):
    settings = ["train.epochs=1", "model.width=16", "model.heads=2", "spatial.steps=0"]
    report = train(world.cache, overrides=settings, out=tmp_path / "run", device="cpu")
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())["zero_shot"]
    assert stored["metric"] == "MR-full-mAP" and stored["videos"] == report.zero_shot.videos > 1
    assert report.messages()[-1] == report.zero_shot.message()

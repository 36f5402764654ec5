"""The number of epochs follows from the number of training queries."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from costl.config import Config, Model, Train
from costl.train import train
from costl.training.inputs import fit_to_data
from costl.training.run_folder import read_run

# queries, settings -> epochs, epochs from one validation to the next, patience, steps of warm-up
SCHEDULES = {
    "as many as QVHighlights": (7218, {}, (60, 1, 15, 200)),
    "many": (1001, {"steps": 6400}, (200, 4, 60, 200)),
    "a few hundred": (288, {}, (60, 1, 60, 132)),
    "twenty": (20, {}, (200, 4, 200, 120)),
    "one": (1, {}, (300, 5, 300, 120)),
    "steps": (3600, {"steps": 900, "batch_size": 24, "warmup_steps": 100}, (6, 1, 15, 100)),
    "steps of few queries": (20, {"steps": 900, "batch_size": 24, "warmup_steps": 300}, (225, 4, 225, 180)),
    "fewer steps than batches": (3600, {"steps": 10}, (1, 1, 15, 2)),
    "rare validation": (20, {"validate_every": 100}, (200, 100, 200, 120)),
    "epochs": (20, {"epochs": 7}, (7, 1, 15, 200)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_few_queries_take_more_epochs_and_at_most_sixty_validations(name):
    queries, settings, expected = SCHEDULES[name]
    fitted = fit_to_data(Config(train=Train(**settings)), queries=queries).train
    assert (fitted.epochs, fitted.validate_every, fitted.patience, fitted.warmup_steps) == expected
    changed = {"splice", "pseudo_labels", "epochs", "steps", "validate_every", "patience", "warmup_steps"}
    assert replace(fitted, **{key: getattr(Train(), key) for key in changed}) == replace(
        Train(**settings), **{key: getattr(Train(), key) for key in changed}
    )


@pytest.mark.parametrize(
    ("queries", "given", "expected"), [(1, None, 1), (1000, None, 1), (1001, None, 0), (20, 0.0, 0), (5000, 0.5, 0.5)]
)
def test_videos_are_spliced_where_there_are_few_queries(queries, given, expected):
    assert fit_to_data(Config(train=Train(epochs=3, splice=given)), queries=queries).train.splice == expected


@pytest.mark.parametrize(
    ("queries", "given", "expected"), [(1, None, 60), (1000, None, 60), (1001, None, 0), (20, 0, 0), (5000, 7, 7)]
)
def test_few_queries_have_pseudo_labels_beside_them(queries, given, expected):
    fitted = fit_to_data(Config(train=Train(epochs=3, pseudo_labels=given)), queries=queries)
    assert fitted.train.pseudo_labels == expected


@pytest.mark.parametrize(("queries", "given", "expected"), [(1000, None, 0.2), (1001, None, 0.1), (1000, 0.0, 0.0)])
def test_few_queries_have_a_higher_dropout(queries, given, expected):
    assert fit_to_data(Config(model=Model(dropout=given)), queries=queries).model.dropout == expected


def test_a_run_has_as_many_epochs_as_the_steps_take(world, tmp_path):
    steps = ["train.steps=7", "train.batch_size=15", "train.validate_every=3"]  # 24 queries: two batches an epoch
    report = train(world.cache, overrides=steps, out=tmp_path / "run", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [("val" in row) for row in rows] == [False, False, True, True]  # every third epoch, and the last one
    assert report.best_epoch in (3, 4) and not report.stopped_early
    assert read_run(tmp_path / "run").config.train.epochs == 4


def test_a_run_that_never_validates_keeps_its_last_epoch(world, tmp_path):
    data = world.copy(tmp_path / "data", val=None)
    report = train(data.cache, overrides=["train.epochs=2", "train.validate_every=2"], out=tmp_path / "run", device="cpu")
    assert report.best_epoch == 2 and report.score is None

"""The quickstart without its work: which splits it scores, and which folders it goes on with."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from costl.experiments import quickstart
from costl.pipeline.world.write_world import WorldSettings


@pytest.fixture
def without_work(monkeypatch) -> None:
    scores = {"R1@0.5": 1.0}
    stand_ins = {
        "extract": lambda *_, **__: SimpleNamespace(failed=(), cache=None),
        "CacheReader": lambda _: SimpleNamespace(settings={}),
        "write_sample": lambda *_, **__: pytest.fail("the world is there"),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(quickstart, name, stand_in)
    monkeypatch.setattr(
        "costl.experiments.scored_runs.train_and_score", lambda _run, _cache, splits, **_: (dict.fromkeys(splits, scores), ())
    )
    monkeypatch.setattr("costl.experiments.untrained_baselines.untrained_baselines", lambda *_: ({}, []))


@pytest.mark.parametrize(("fine", "more"), [(False, []), (True, ["test_unseen_relation"])])
def test_every_test_split_of_the_world_is_scored(tmp_path, without_work, fine, more):
    world = WorldSettings(fine=fine)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "world.json").write_text(json.dumps(asdict(world)))
    results = quickstart.quickstart(tmp_path, world=world)
    assert list(results.data()["CoSTL"]) == ["test", "test_unseen", *more]


def test_a_world_of_a_version_without_fine_worlds_is_used_again(tmp_path, without_work):
    (tmp_path / "videos").mkdir()
    settings = asdict(WorldSettings())
    del settings["fine"]
    (tmp_path / "videos" / "world.json").write_text(json.dumps(settings))
    assert set(quickstart.quickstart(tmp_path).data()) == {"CoSTL", "CoSTL without spatial encoder"}

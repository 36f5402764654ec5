"""What a run records about its training data for prediction."""

from __future__ import annotations

import json

import pytest

from costl.config import load_config
from costl.pipeline.cache.reader import CacheReader
from costl.training.run_folder import create_run, read_run


def grid_of(world, folder, windows: list[list[float]], duration: float = 24.0, **predict: float) -> float | None:
    """The `round_s` of a run that is trained on one sentence with these moments; its clips have two seconds."""
    row = {"qid": 1, "query": "a cat", "vid": "train_0000", "duration": duration, "relevant_windows": windows}
    world.copy(folder / "world", train=json.dumps(row) + "\n")
    features = CacheReader(folder / "world" / world.cache.name)
    created = create_run(folder / "run", load_config({"predict": predict}), features)
    assert read_run(folder / "run") == created
    return created.resolved_config.predict.round_s


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([[2, 6], [10, 24]], 2.0),
        ([[2, 6], [9, 12]], 0.0),
        ([[2, 6.004]], 0.0),
        ([], 0.0),  # highlights only
    ],
)
def test_moments_are_rounded_to_clips_where_all_training_moments_are(world, tmp_path, windows, expected):
    assert grid_of(world, tmp_path, windows) == expected


def test_a_moment_may_end_with_the_video(world, tmp_path):
    assert grid_of(world, tmp_path, [[2, 23.3]], duration=23.3) == 2.0


def test_a_set_unit_wins(world, tmp_path):
    assert grid_of(world, tmp_path, [[2, 6]], round_s=0.0) == 0.0

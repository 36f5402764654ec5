"""An oracle that knows where each thing of the sample world is answers its queries."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.world.write_world import WorldSettings, write_sample

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools/check_world.py"))


@pytest.mark.parametrize("fine", [False, True])
def test_an_oracle_that_knows_the_positions_is_near_perfect(tmp_path, capsys, monkeypatch, fine):
    monkeypatch.setattr("costl.pipeline.world.write_world._render", lambda *_: None)  # it does not look at pictures
    videos = {"train": 1, "val": 3, "test": 8, "test_unseen": 6} | ({"test_unseen_relation": 6} if fine else {})
    settings = WorldSettings(videos=videos, side=64, train_queries=5, fine=fine, seed=3)
    write_sample(tmp_path / "world", settings=settings, processes=1)
    TOOL["main"](tmp_path / "world")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["val", "test", "test_unseen", "test_unseen_relation"][: 3 + fine]
    for line in lines:
        assert float(line.split("'R1@0.5': ")[1].split(",")[0]) >= 95


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("the red star is in view", [1, 1, 1, 1, 1, 0]),
        ("the red star moves right", [1, 1, 1, 0, 0, 0]),
        ("the red star is on the left", [1, 0, 0, 0, 0, 0]),
        ("the red star is left of the cup", [1, 1, 0, 0, 0, 0]),
        ("the red star moves left of the cup", [1, 1, 0, 0, 0, 0]),
        ("the red star is next to the cup", [0, 1, 1, 1, 1, 0]),
        ("the cup goes up", [0, 0, 0, 0, 0, 0]),
        ("the box grows", [0, 0, 1, 1, 0, 0]),
        ("the green box gets larger", [0, 0, 1, 1, 0, 0]),
        ("the box becomes smaller", [0, 0, 0, 0, 0, 0]),
        ("the heart shrinks", [0, 0, 1, 1, 0, 0]),
        ("the heart is right of the box", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_oracle_evaluates_each_kind_of_sentence(sentence, expected):
    star = {"thing": "small red star", "centres": [[0.2, 0.5], [0.4, 0.5], [0.6, 0.5], [0.7, 0.5], [0.7, 0.5], None]}
    cup = {"thing": "large blue cup", "centres": [[0.5, 0.5]] * 6}
    diameters = [0.09, 0.09, 0.1, 0.12, 0.13, 0.13]  # at the middle of each clip
    box = {"thing": "green box", "diameters": diameters, "centres": [[0.3, 0.5]] * 6}
    heart = {"thing": "green heart", "diameters": diameters[::-1], "centres": [[0.7, 0.5]] * 6}
    np.testing.assert_array_equal(TOOL["true_clips"](sentence, [star, cup, box, heart]), expected)

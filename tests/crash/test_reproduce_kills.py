"""costl reproduce killed at seeded moments: the same command continues, and ends with the same bytes in its tables.

Every benchmark, from videos and from features, killed in every stage:

    python -m pytest tests/crash/test_reproduce_kills.py -m long -n 0
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from miniatures import FILES, write_miniature
from processes import run_in_process, start_command

from costl.pipeline.world.write_world import TINY_CLIP

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
SMALL = ("model.width=16", "model.heads=2", "spatial.top_k=4", "train.epochs=2", "train.warmup_steps=1")
TABLES = ("table.md", "table.tex", "table.csv", "results.json")
STAGES = ("prepare", "measure: .*videos", "(videos|headers)", ".*seed 0: train", ".*seed 0: predict", ".*seed 1: train")


def command(home: Path, benchmark: str, *, features: bool) -> list[object]:
    """The arguments of costl reproduce for a miniature in `home`, by features or by videos."""
    miniature = write_miniature(benchmark, home / "official")
    options: list[object] = ["--annotations", "official", "--seeds", 2, "--device", "cpu"]
    if features:
        fps = 1 if benchmark in ("charades", "youtube-highlights") else 0.5
        frames, text = miniature.publish(home / "published", fps=fps)
        options += ["--features", f"all={frames}", "--text", text]
    else:
        options += ["--videos", miniature.render(home / "videos"), "--weights", TINY_CLIP]
    return ["reproduce", benchmark, *options, *(part for setting in SMALL for part in ("--set", setting))]


def kill_in(stage: str, arguments: Sequence[object], home: Path, *, after_s: float) -> None:
    """Kills the command `after_s` seconds after it has printed the name of a stage."""
    process = start_command(*arguments, cwd=home)
    assert process.stderr is not None
    assert any(re.match(rf"{stage} \.\.\.$", line) for line in process.stderr), f"no stage {stage!r}"
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the command ended before the kill"


def check_killed_and_continued(
    home: Path, benchmark: str, stages: Sequence[str], rng: random.Random, *, features: bool
) -> None:
    """Runs the command without a kill, and with a kill in each of the stages, and compares what both write."""
    arguments = command(home, benchmark, features=features)
    for stage in stages:
        kill_in(stage, [*arguments, "--out", "killed"], home, after_s=rng.uniform(0, 0.05))
        assert not (home / "killed" / "table.md").exists()
    for folder in ("killed", "whole"):
        code, _, err = run_in_process(*arguments, "--out", folder, cwd=home)
        assert code == 0, err
    written = {name: (home / "killed" / name).read_bytes() for name in TABLES}
    assert written == {name: (home / "whole" / name).read_bytes() for name in TABLES}
    left = [path for path in (home / "killed").rglob(".*") if path.name not in (".lock",)]
    assert left == [], "a temporary file is left"


@pytest.mark.parametrize("benchmark", ["charades", "youtube-highlights"])
def test_a_killed_reproduction_ends_with_the_same_tables(benchmark, tmp_path):
    rng = random.Random(benchmark)
    check_killed_and_continued(tmp_path, benchmark, [rng.choice(STAGES[1:])], rng, features=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("benchmark", FILES)
def test_a_reproduction_killed_in_every_stage_ends_with_the_same_tables(benchmark, features, tmp_path):
    check_killed_and_continued(tmp_path, benchmark, STAGES, random.Random(1), features=features)

"""A kill at any moment loses no finished video, and a rerun extracts only the others.

The long variant takes minutes on two idle cores:

    python -m pytest tests/crash/test_kills.py -m long
    COSTL_LONG_VIDEOS=60 python -m pytest tests/crash/test_kills.py -m long
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import (
    FPS,
    check_cache,
    contents_of,
    json_summary,
    kill,
    part_stamps,
    parts_of,
    run_command,
    run_in_process,
    start_command,
    wait_for,
    write_videos,
)

from costl.pipeline.cache.reader import CacheReader

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
LONG = int(os.environ.get("COSTL_LONG_VIDEOS", "500"))
EXTRACT = ("extract", "--videos", "w", "--fps", FPS, "--device", "cpu", "--workers", 2, "--json")


@dataclass
class Survivors:
    """How many videos were whole after each kill, and how many of them the index listed."""

    parts: list[int] = field(default_factory=list)
    indexed: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """A folder with twelve videos in `w` and the cache of a run without any kill."""
    home = tmp_path_factory.mktemp("uninterrupted")
    write_videos(home / "w", 12)
    code, out, err = run_in_process(*EXTRACT, cwd=home)
    assert code == 0 and len(json_summary(out)["done"]) == 12, err
    return home


def kill_at_line(home: Path, start: str) -> None:
    """Kills the command as soon as it prints a line that begins with `start`."""
    process = start_command(*EXTRACT, cwd=home)
    assert process.stderr is not None
    assert any(line.startswith(start) for line in process.stderr), f"no line begins with {start!r}"
    kill(process, whole_group=True)


def kill_after_parts(home: Path, parts: int, *, after_s: float, whole_group: bool) -> None:
    """Kills the command `after_s` seconds after `parts` videos are finished."""
    process = start_command(*EXTRACT, cwd=home)
    wait_for(lambda: len(parts_of(home / "feats.h5")) >= parts or process.poll() is not None, within_s=3600)
    time.sleep(after_s)
    kill(process, whole_group=whole_group)


def check_survivors(home: Path, truth: dict[str, bytes], survivors: Survivors) -> None:
    """Checks that every part is as in `truth` and the index can be read; adds how many there are to `survivors`."""
    cache = home / "feats.h5"
    check_cache(cache, reported=())
    for part in parts_of(cache):
        assert part.read_bytes() == truth[part.name], part
    survivors.parts.append(len(parts_of(cache)))
    survivors.indexed.append(len(CacheReader(cache).video_ids) if cache.exists() else 0)


def complete(home: Path, total: int) -> list[str]:
    """Runs to the end; -> the videos decoded now. Finished videos must be neither decoded nor written again."""
    before = part_stamps(home / "feats.h5")
    code, out, err = run_in_process(*EXTRACT, cwd=home)
    assert code == 0, err
    summary = json_summary(out)
    after = part_stamps(home / "feats.h5")
    decoded = {name for name in after if after[name] != before.get(name)}
    assert decoded == set(summary["done"]) and set(summary["skipped"]) == set(before)
    assert len(after) == total and not decoded & set(before)
    return summary["done"]


@pytest.mark.promise(1)
def test_a_killed_run_loses_nothing_and_ends_with_the_same_bytes(uninterrupted, tmp_path, report_figure):
    shutil.copytree(uninterrupted / "w", tmp_path / "w")
    truth = contents_of(uninterrupted / "feats.h5")
    survivors = Survivors()
    rng = random.Random(3)
    kill_at_line(tmp_path, "check")
    check_survivors(tmp_path, truth, survivors)
    for number, target in enumerate(sorted(rng.sample(range(1, 11), 2))):
        kill_after_parts(tmp_path, target, after_s=rng.uniform(0, 0.02), whole_group=number % 2 == 0)
        check_survivors(tmp_path, truth, survivors)
        assert survivors.parts[-1] >= target
    assert survivors.parts == sorted(survivors.parts), "a finished video was lost"
    assert len(complete(tmp_path, 12)) == 12 - survivors.parts[-1]
    assert contents_of(tmp_path / "feats.h5") == truth
    assert not list(tmp_path.rglob("*.tmp")), "a temporary file is left"
    report_figure(f"extraction: {len(survivors.parts)} kills, after which {survivors.parts} of 12 videos were finished")


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.promise(1)
def test_hundreds_of_videos_killed_ten_times_are_each_finished_once(tmp_path, report_figure):
    began = time.monotonic()
    write_videos(tmp_path / "uninterrupted" / "w", LONG, processes=-1)
    shutil.copytree(tmp_path / "uninterrupted" / "w", tmp_path / "w")
    report_figure(f"{LONG} videos rendered in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    code, _, err = run_command(*EXTRACT, cwd=tmp_path / "uninterrupted", within_s=3600)
    assert code == 0, err
    uninterrupted_s = time.monotonic() - began
    report_figure(f"uninterrupted: {uninterrupted_s:.0f} s")
    truth = contents_of(tmp_path / "uninterrupted" / "feats.h5")
    survivors = Survivors()
    rng = random.Random(7)
    former: dict[str, tuple[int, int]] = {}
    began = time.monotonic()
    for number in range(10):
        target = int(LONG * (number + rng.random()) / 10.5) + 1
        kill_after_parts(tmp_path, target, after_s=rng.uniform(0, 1), whole_group=number % 2 == 0)
        check_survivors(tmp_path, truth, survivors)
        now = part_stamps(tmp_path / "feats.h5")
        assert {name: now.get(name) for name in former} == former, "a finished video was extracted again"
        former = dict(now)
        report_figure(
            f"kill {number + 1}: {survivors.parts[-1]} videos whole on disk, {survivors.indexed[-1]} of them in the "
            f"index, {time.monotonic() - began:.0f} s"
        )
    rest = complete(tmp_path, LONG)
    assert contents_of(tmp_path / "feats.h5") == truth and survivors.parts == sorted(survivors.parts)
    report_figure(
        f"10 kills; the last run decoded {len(rest)}; {survivors.parts[-1] + len(rest)} videos finished in all, each "
        f"once; {time.monotonic() - began:.0f} s, uninterrupted {uninterrupted_s:.0f} s; the same bytes."
    )

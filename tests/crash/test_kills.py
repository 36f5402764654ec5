"""Killed at any moment, nothing finished is lost, and the rest is all that a rerun does.

The long variant takes minutes on two idle cores and is left out unless it is asked for:

    python -m pytest tests/crash/test_kills.py -m long
    COSTL_LONG_VIDEOS=60 python -m pytest tests/crash/test_kills.py -m long
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import FPS, contents_of, here, is_whole, parts_of, run, start, told, wait_for, write_videos, written

from costl.pipeline.cache.reader import CacheReader

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
LONG = int(os.environ.get("COSTL_LONG_VIDEOS", "500"))
EXTRACT = ("extract", "--videos", "w", "--fps", FPS, "--device", "cpu", "--workers", 2, "--json")


@dataclass
class Seen:
    """What a series of kills left behind: after each, how many videos were kept and how many the index knew of."""

    kept: list[int] = field(default_factory=list)
    indexed: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A folder of twelve videos, `w`, with the cache of a run that nobody disturbed."""
    home = tmp_path_factory.mktemp("undisturbed")
    write_videos(home / "w", 12)
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 0 and len(told(out)["done"]) == 12, err
    return home


def kill_when_told(home: Path, line: str) -> None:
    """Kills the command as soon as it says it is at `line`."""
    process = start(*EXTRACT, cwd=home)
    assert process.stderr is not None
    assert any(said.startswith(line) for said in process.stderr), f"never said {line!r}"
    end(process, whole_group=True)


def kill_at(home: Path, parts: int, *, after_s: float, whole_group: bool) -> None:
    """Kills the command a moment after so many videos are finished."""
    process = start(*EXTRACT, cwd=home)
    wait_for(lambda: len(parts_of(home / "feats.h5")) >= parts or process.poll() is not None, within_s=3600)
    time.sleep(after_s)
    end(process, whole_group=whole_group)


def end(process, *, whole_group: bool) -> None:
    """By SIGKILL: the command alone, so that its decode processes are orphans, or all of them, as when power fails."""
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def look(home: Path, truth: dict[str, bytes], seen: Seen) -> None:
    """All that has its name is whole, and what the index calls finished is there."""
    cache = home / "feats.h5"
    parts = parts_of(cache)
    for part in parts:
        assert is_whole(part), part
        assert part.read_bytes() == truth[part.name], part
    indexed = []
    if cache.exists():
        reader = CacheReader(cache)
        reader.verify_words()
        indexed = reader.video_ids
        for name in indexed:
            reader.verify(name)
    seen.kept.append(len(parts))
    seen.indexed.append(len(indexed))


def complete(home: Path, total: int) -> list[str]:
    """Runs to the end; -> names of the videos decoded now. Those that were finished are neither decoded nor written."""
    before = written(home / "feats.h5")
    code, out, err = here(*EXTRACT, cwd=home)
    assert code == 0, err
    said, after = told(out), written(home / "feats.h5")
    made = {name for name in after if after[name] != before.get(name)}
    assert made == set(said["done"]) and set(said["skipped"]) == set(before)
    assert len(after) == total and not made & set(before)
    return said["done"]


@pytest.mark.promise(1)
def test_a_run_killed_again_and_again_loses_nothing_and_ends_with_the_same_bytes(undisturbed, tmp_path, tell):
    shutil.copytree(undisturbed / "w", tmp_path / "w")
    truth, seen, dice = contents_of(undisturbed / "feats.h5"), Seen(), random.Random(3)
    kill_when_told(tmp_path, "check")
    look(tmp_path, truth, seen)
    for number, target in enumerate(sorted(dice.sample(range(1, 11), 2))):
        kill_at(tmp_path, target, after_s=dice.uniform(0, 0.02), whole_group=number % 2 == 0)
        look(tmp_path, truth, seen)
        assert seen.kept[-1] >= target
    assert seen.kept == sorted(seen.kept), "a finished video was lost"
    assert len(complete(tmp_path, 12)) == 12 - seen.kept[-1]
    assert contents_of(tmp_path / "feats.h5") == truth
    assert not list(tmp_path.rglob("*.tmp")), "what was half-written is swept away"
    tell(f"extraction: {len(seen.kept)} kills survived, with {seen.kept} of 12 videos kept")


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.promise(1)
def test_hundreds_of_videos_killed_ten_times_are_each_finished_once(tmp_path, tell):
    began = time.monotonic()
    write_videos(tmp_path / "alone" / "w", LONG, processes=-1)
    shutil.copytree(tmp_path / "alone" / "w", tmp_path / "w")
    tell(f"{LONG} videos rendered in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    code, _, err = run(*EXTRACT, cwd=tmp_path / "alone", within_s=3600)
    assert code == 0, err
    alone_s, truth = time.monotonic() - began, contents_of(tmp_path / "alone" / "feats.h5")
    tell(f"undisturbed: {alone_s:.0f} s")
    began, seen, dice, former = time.monotonic(), Seen(), random.Random(7), {}
    for number in range(10):
        target = int(LONG * (number + dice.random()) / 10.5) + 1
        kill_at(tmp_path, target, after_s=dice.uniform(0, 1), whole_group=number % 2 == 0)
        look(tmp_path, truth, seen)
        now = written(tmp_path / "feats.h5")
        assert {name: now.get(name) for name in former} == former, "a finished video was made again"
        former = now
        tell(
            f"kill {number + 1}: {seen.kept[-1]} videos whole on disk, {seen.indexed[-1]} of them in the index, "
            f"{time.monotonic() - began:.0f} s"
        )
    rest = complete(tmp_path, LONG)
    assert contents_of(tmp_path / "feats.h5") == truth and seen.kept == sorted(seen.kept)
    tell(
        f"10 kills survived; the last run decoded {len(rest)}; {seen.kept[-1] + len(rest)} videos finished in all, each "
        f"once; {time.monotonic() - began:.0f} s beside {alone_s:.0f} s undisturbed; the same bytes."
    )

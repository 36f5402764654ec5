"""`costl search` killed at any moment loses no indexed video, and the next search answers as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from processes import (
    contents_of,
    kill,
    part_stamps,
    parts_of,
    run_command,
    run_in_process,
    start_command,
    wait_for,
    write_videos,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
VIDEOS = 6
CACHE = Path("w/.costl/library.h5")
SEARCH = ("search", "a large red circle", "a blue square", "--videos", "w", "--device", "cpu", "--min-score", 0, "--json")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A folder with six videos in `w`, not indexed yet."""
    home = tmp_path_factory.mktemp("videos")
    write_videos(home / "w", VIDEOS)
    return home


def kill_after(home: Path, parts: int, *, after_s: float, whole_group: bool) -> None:
    """Kills a search `after_s` seconds after `parts` videos are indexed; parts of earlier searches count."""
    process = start_command(*SEARCH, cwd=home)
    wait_for(lambda: len(parts_of(home / CACHE)) >= parts or process.poll() is not None)
    time.sleep(after_s)
    kill(process, whole_group=whole_group)


def index_of(home: Path) -> dict[str, bytes]:
    """The cache of the index, and the levels of the ordinary sentences."""
    vectors = home / "w" / ".costl" / "vectors"
    return contents_of(home / CACHE) | {file.name: file.read_bytes() for file in sorted(vectors.glob("ordinary-*.npy"))}


@pytest.mark.promise(1)
def test_a_killed_search_loses_no_indexed_video_and_no_answer(videos, tmp_path):
    shutil.copytree(videos, tmp_path, dirs_exist_ok=True)
    code, expected, err = run_in_process(*SEARCH, cwd=videos)
    assert code == 0 and json.loads(expected)[0]["hits"], err
    rng = random.Random(5)
    found = 0
    for number, parts in enumerate(sorted(rng.sample(range(VIDEOS - 1), 2))):
        kill_after(tmp_path, parts, after_s=rng.uniform(0, 0.05), whole_group=number == 0)
        stamps = part_stamps(tmp_path / CACHE)
        assert len(stamps) >= max(found, parts)
        found = len(stamps)
    code, answer, err = run_command(*SEARCH, cwd=tmp_path)
    assert code == 0, err
    assert answer == expected.replace(str(videos), str(tmp_path))
    after = part_stamps(tmp_path / CACHE)
    assert len(after) == VIDEOS and all(after[name] == stamp for name, stamp in stamps.items())
    assert index_of(tmp_path) == index_of(videos)
    assert not list(tmp_path.rglob("*.tmp")), "a temporary file is left"

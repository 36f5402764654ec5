"""`costl cache verify` finds every kind of damage and names the file; `costl cache status` counts the videos."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from costl.bench.index import write_synthetic
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.inspect import MAX_LISTED, Status
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError
from costl.pipeline.progress import Progress

VIDEOS = 12


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "feats.h5"
    write_synthetic(path, videos=VIDEOS, word_width=8)
    return path


@pytest.fixture
def cache(whole, tmp_path) -> Path:
    shutil.copy(whole, tmp_path / "feats.h5")
    shutil.copytree(parts_folder(whole), parts_folder(tmp_path / "feats.h5"))
    return tmp_path / "feats.h5"


def part_of(cache: Path, number: int) -> Path:
    reader = CacheReader(cache)
    return reader.part_path(reader.video_ids[number])


def flip(path: Path, name: str) -> None:
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    path.symlink_to(path.with_suffix(".aside"))


def of_another_cache(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprint"] = np.array(b"?" * 64)


def of_another_shape(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        tokens = file["tokens"][()]
        del file["tokens"]
        file["tokens"] = tokens[:, :1]


DAMAGE = {
    "missing": (Path.unlink, "read"),
    "empty": (lambda path: path.write_bytes(b""), "not an HDF5 file"),
    "text": (lambda path: path.write_bytes(b"no HDF5 at all" * 1000), "not an HDF5 file"),
    "cut by a byte": (cut, ""),
    "a link": (replace_by_link, "a link, expected a file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ""),
}
ONLY_IN_FULL = {
    "a flipped bit": (lambda path: flip(path, "tokens"), "its content has changed since it was written"),
    "a flipped bit in the times": (lambda path: flip(path, "times_s"), ""),
    "another cache's": (of_another_cache, "made with other settings than its index"),
    "another shape": (of_another_shape, r"tokens (2, 1, 8), expected (2, 2, 8)"),
}


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_an_undamaged_cache_passes_and_every_check_is_reported(cache, quick):
    reported: list[Progress] = []
    report = verify(cache, quick=quick, threads=3, progress=reported.append)
    assert (report.checked, report.damaged, report.exit_code) == (VIDEOS + 1, (), 0)
    assert [progress.done for progress in reported] == list(range(1, VIDEOS + 2)) and reported[-1].total == VIDEOS + 1
    assert "\n".join(report.lines()) == "13 of 13 files are whole."


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", DAMAGE)
def test_missing_truncated_and_foreign_parts_are_found(cache, name, quick):
    part = part_of(cache, 4)
    DAMAGE[name][0](part)
    (damage,) = verify(cache, quick=quick).damaged
    assert damage.path == part and damage.problem.startswith(f"{part}: ") and damage.problem.endswith(".")
    if quick:
        assert DAMAGE[name][1] in damage.problem


@pytest.mark.parametrize("name", ONLY_IN_FULL)
@pytest.mark.promise(10)
def test_damage_inside_a_part_is_found_by_a_full_check(cache, name):
    part = part_of(cache, 4)
    damage_part, message = ONLY_IN_FULL[name]
    damage_part(part)
    report = verify(cache)
    (damage,) = report.damaged
    assert damage.path == part and message in damage.problem and report.exit_code == 3
    assert report.lines()[-1] == "12 of 13 files are whole."


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.promise(10)
def test_words_are_checked_too(cache, quick):
    words = CacheReader(cache).words_path
    cut(words) if quick else flip(words, "sentences")
    (damage,) = verify(cache, quick=quick).damaged
    assert (damage.name, damage.path) == ("(words)", words)


def test_damaged_parts_are_listed_in_the_order_of_the_videos(cache):
    for number in (7, 2, 9):
        part_of(cache, number).unlink()
    names = CacheReader(cache).video_ids
    assert [damage.name for damage in verify(cache, threads=4).damaged] == [names[2], names[7], names[9]]


def test_videos_without_features_are_not_verified(cache):
    with CacheWriter(cache, CacheReader(cache).contents, {}) as writer:
        writer.record_without_features("bad", status="failed", reason="no video stream.")
        writer.write_index()
    assert verify(cache).checked == 1


def test_a_damaged_index_is_refused(cache):
    cache.write_bytes(cache.read_bytes()[:-1])
    with pytest.raises(CacheError, match=r"feats\.h5: damaged"):
        verify(cache)


# Status


def rows(ok: int, failed: int) -> list[VideoRow]:
    with_features = [VideoRow(f"v{i}", "ok", f"v{i}", part=f"v{i}.h5", clips=75, duration_s=150.0) for i in range(ok)]
    statuses = ("failed", "failed", "missing")
    return with_features + [VideoRow(f"x{i}", statuses[i % 3], f"x{i}", reason=f"reason {i}.") for i in range(failed)]


def test_status_lists_failed_videos_and_counts_the_others():
    assert Status(rows(48, 3)).lines() == [
        "x0  failed    reason 0.",
        "x1  failed    reason 1.",
        "x2  missing   reason 2.",
        "    2 failed: reason 0. (x0, x1)",
        "    1 missing: reason 2. (x2)",
        "48 of 51 videos have features. 3600 clips, 2.0 hours.",
        "Without: 2 failed, 1 missing.",
    ]


def test_status_of_many_videos_is_short_unless_all_are_requested():
    many = rows(10_000, 400)
    lines = Status(many).lines()
    assert lines[MAX_LISTED + 1] == "  267 failed: reason 0. (x0, x1, x3, x4, x6 and 262 more)"
    assert len(lines) == MAX_LISTED + 5 and lines[MAX_LISTED] == "... and 380 more; --all lists every video."
    everything = Status(many, everything=True).lines()
    assert len(everything) == 10_404 and everything[0].split() == ["v0", "ok", "75", "clips,", "150.0", "s"]


def test_status_of_an_empty_cache():
    assert Status([]).lines() == ["0 of 0 videos have features. 0 clips, 0.0 hours."]

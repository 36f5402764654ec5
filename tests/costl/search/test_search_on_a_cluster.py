"""A library on a real Dask cluster of two workers: the digits of one machine, workers that die, and workers that differ."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from dask_cluster import Machines, wait_for_workers, wait_until

from costl.commands import main
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.errors import CacheError, CostlError, UsageError
from costl.pipeline.library import cluster_scan
from costl.pipeline.library.best_videos import LocalScan
from costl.pipeline.library.cluster_scan import ClusterScan
from costl.pipeline.library.vectors import Vectors, header, map_rows
from costl.pipeline.progress import Progress
from costl.pipeline.run.cluster_worker import versions
from costl.search.filters import Filters
from costl.search.open_library import open_library

QUERIES = ["a large red circle", "the blue star", "a small ring"]
WIDTH = 64
CLIPS = np.array([40, 7, 300, 1, 1, 90, 12, 500, 33, 7])


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[Machines]:
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the extra `cluster`")
    machines = Machines(tmp_path_factory.mktemp("dask") / "dask.log")
    for _ in range(2):
        machines.worker()
    wait_for_workers(machines.address, 2)
    yield machines
    machines.close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Many shards of a small library."""
    monkeypatch.setattr(cluster_scan, "SMALLEST_BYTES", 1)


@pytest.fixture
def vectors(tmp_path) -> Vectors:
    """A search file with dead rows at its start, and a copy of each of the first videos at its end."""
    rng = np.random.default_rng(0)
    rows = 5 + np.cumsum(CLIPS) - CLIPS
    array = rng.normal(size=(5 + CLIPS.sum(), WIDTH)).astype("<f2")
    array[rows[9] : rows[9] + 7] = array[rows[1] : rows[1] + 7]
    array[rows[4]] = array[rows[3]]
    path = tmp_path / f"vectors-{0:016x}.f16"
    path.write_bytes(header(path.name, WIDTH) + array.tobytes())
    mapped = map_rows(path, rows=len(array), width=WIDTH)
    return Vectors(mapped, tuple(f"v{n}" for n in range(10)), rows, CLIPS, CLIPS / 0.5, fps=0.5, path=path)


def sentences(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, WIDTH)).astype(np.float32)


def as_bytes(found: Any) -> list[list[tuple[int, float, bytes]]]:
    return [[(video.index, video.level, video.curve.tobytes()) for video in videos] for videos in found]


def copy_videos(world: Any, folder: Path, count: int = 4) -> Path:
    for number, path in enumerate(sorted(world.videos.glob("*.mp4"))[:count]):
        target = folder / f"202{number % 2}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


# The scan


@pytest.mark.parametrize("shards_of_a_thread", [1, 4, 100])
def test_a_cluster_has_the_digits_of_one_machine(machines, vectors, small_shards, monkeypatch, shards_of_a_thread):
    monkeypatch.setattr(cluster_scan, "_SHARDS_OF_A_THREAD", shards_of_a_thread)
    scan, local = ClusterScan(machines.address), LocalScan()
    for chosen, queries, count in ((vectors, 1, 3), (vectors, 5, 99), (vectors.select([9, 2, 4, 3, 1]), 5, 2)):
        expected = as_bytes(local.best_videos(chosen, sentences(queries), count))
        assert as_bytes(scan.best_videos(chosen, sentences(queries), count)) == expected
    done: list[int] = []
    assert np.array_equal(scan.highest(vectors, sentences(5), done.append), local.highest(vectors, sentences(5), print))
    assert done[0] == 0 and done == sorted(done) and done[-1] < 10


def test_many_sentences_are_compared_in_groups(machines, vectors, monkeypatch):
    expected = as_bytes(LocalScan().best_videos(vectors, sentences(2500), 3))
    monkeypatch.setattr(cluster_scan, "SIMILARITIES_AT_ONCE", 1000 * 890)  # 890 clips in the three longest videos
    monkeypatch.setattr(cluster_scan, "LARGEST_BYTES", 2 * WIDTH * 500)
    groups: list[int] = []
    scan_shards = ClusterScan._scan

    def count(self: ClusterScan, function: Any, vectors: Vectors, some: np.ndarray, **options: Any) -> Any:
        groups.append(len(some))
        return scan_shards(self, function, vectors, some, **options)

    monkeypatch.setattr(ClusterScan, "_scan", count)
    assert as_bytes(ClusterScan(machines.address).best_videos(vectors, sentences(2500), 3)) == expected
    assert groups == [1000, 1000, 500]


def test_a_worker_that_dies_in_the_scan_costs_no_hit(machines, vectors, small_shards, tmp_path):
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os\nfrom costl.pipeline.library import cluster_scan_worker\n"
        "def dask_setup(worker):\n    cluster_scan_worker.similarities = lambda *_, **__: os._exit(9)\n"
    )
    dying = machines.worker("--no-nanny", "--preload", str(deadly))
    wait_for_workers(machines.address, 3)
    found = as_bytes(ClusterScan(machines.address).best_videos(vectors, sentences(2), 3))
    assert dying.wait(60) == 9, "it never got a task"
    assert found == as_bytes(LocalScan().best_videos(vectors, sentences(2), 3))


def test_a_worker_with_another_file_is_named(machines, vectors):
    scan = ClusterScan(machines.address)
    content = vectors.path.read_bytes()
    for wrong in (content[:-1], b"x" * len(content)):
        # The mapping of this machine remains that of the file before.
        other = vectors.path.with_name("other")
        other.write_bytes(wrong)
        other.replace(vectors.path)
        with pytest.raises(UsageError, match=rf"worker tcp://\S+: {vectors.path}: damaged or foreign .*all workers share\.$"):
            list(scan.best_videos(vectors, sentences(1), 3))
    vectors.path.unlink()
    with pytest.raises(CacheError, match=f"{vectors.path}: another process has replaced it"):
        scan.highest(vectors, sentences(1), print)


def test_a_worker_that_sees_no_file_is_named(machines, vectors, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster_scan, "_refuse_replaced_file", lambda _: None)
    vectors.path.unlink()
    with pytest.raises(UsageError, match=rf"worker tcp://\S+: {vectors.path}: cannot be read \(No such file.* share\.$"):
        list(ClusterScan(machines.address).best_videos(vectors, sentences(1), 3))


def test_a_worker_with_other_versions_is_named(machines, vectors, monkeypatch):
    monkeypatch.setattr(cluster_scan, "versions", lambda: versions() | {"numkong": "1.0"})
    with pytest.raises(UsageError, match=r"worker tcp://\S+: has other versions \(numkong: here 1\.0, there "):
        list(ClusterScan(machines.address).best_videos(vectors, sentences(1), 3))


def test_a_worker_that_cannot_run_the_scan_is_named_or_the_error_stays(machines, vectors, monkeypatch):
    monkeypatch.setattr(cluster_scan, "scan_best", lambda shard, **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(ClusterScan(machines.address).best_videos(vectors, sentences(1), 3))


def test_a_task_that_kills_its_workers_ends_the_search(machines, vectors, monkeypatch):
    from distributed import KilledWorker

    def die(shard: Any, **_: Any) -> None:
        raise KilledWorker("task", SimpleNamespace(address="tcp://worker:1"), 3)

    monkeypatch.setattr(cluster_scan, "scan_best", die)
    with pytest.raises(CostlError, match=r"Several workers died while they had one task .* Search again\."):
        list(ClusterScan(machines.address).best_videos(vectors, sentences(1), 3))


# The library


@pytest.fixture
def folder(indexed, tmp_path) -> Path:
    return shutil.copytree(indexed, tmp_path / "videos")


@pytest.fixture(scope="module")
def indexed(world, tmp_path_factory) -> Path:
    """A folder of four videos that one machine has indexed and searched."""
    folder = copy_videos(world, tmp_path_factory.mktemp("library") / "videos")
    open_library(folder, weights=str(world.videos / "clip"), device="cpu", workers=1).search(QUERIES[0])
    return folder


def test_a_library_has_the_answers_of_one_machine(machines, folder, small_shards, tmp_path):
    levels = folder / ".costl" / "vectors" / "levels.npz"
    one = open_library(folder, device="cpu")
    earlier = levels.rename(tmp_path / "earlier.npz")
    several = open_library(folder, device="cpu", cluster=machines.address)
    for queries, filters in ((QUERIES[:1], Filters()), (QUERIES, Filters()), (QUERIES, Filters(within="2021/"))):
        for top in (1, 20):
            expected = one.search_all(queries, top=top, min_score=0.0, filters=filters)
            assert several.search_all(queries, top=top, min_score=0.0, filters=filters) == expected
            assert any(result.hits for result in expected)
    with np.load(levels) as again, np.load(earlier) as before:
        assert {*again} == {*before} and all(np.array_equal(again[name], before[name]) for name in before)


def test_indexing_loses_nothing_with_a_worker(machines, world, indexed, tmp_path):
    folder = copy_videos(world, tmp_path / "videos")
    parts = parts_folder(folder / ".costl" / "library.h5")
    killed = machines.worker()
    wait_for_workers(machines.address, 3)

    def kill_one(progress: Progress) -> None:
        if progress.stage == "videos" and progress.done == 1 and killed.poll() is None:
            wait_until(lambda: list(parts.glob(".run-*/*.0")) or len(list(parts.glob("*.h5"))) == 4)
            killed.send_signal(signal.SIGKILL)

    options: dict[str, Any] = {"weights": str(world.videos / "clip"), "device": "cpu"}
    library = open_library(folder, cluster=machines.address, progress=kill_one, **options)
    assert killed.wait(60) == -signal.SIGKILL
    assert len(library) == 4 and not library.files.failed
    earlier = indexed / ".costl" / "library.h5"
    for path in [earlier, *parts_folder(earlier).glob("*.h5")]:
        assert (folder / ".costl" / path.relative_to(earlier.parent)).read_bytes() == path.read_bytes()
    shutil.copy(next(folder.rglob("*.mp4")), folder / "copy.mp4")
    open_library(folder, cluster=machines.address, device="cpu")  # nothing to extract


def test_an_existing_index_gets_new_videos_on_the_cluster(machines, world, folder):
    (new,) = sorted(world.videos.glob("*.mp4"))[8:9]
    shutil.copy(new, folder / "new.mp4")
    library = open_library(folder, cluster=machines.address, device="cpu")
    assert library.files.done == ("new.mp4",) and len(library) == 5
    with pytest.raises(UsageError, match="--workers is for one machine"):
        shutil.copy(sorted(world.videos.glob("*.mp4"))[9], folder / "newer.mp4")
        open_library(folder, cluster=machines.address, device="cpu", workers=2)


def test_the_command_searches_on_a_cluster(machines, folder):
    arguments = ["search", QUERIES[0], "--videos", str(folder), "--json", "--all", "--quiet", "--device", "cpu"]
    one, several = (CliRunner().invoke(main, [*arguments, *more]) for more in ([], ["--cluster", machines.address]))
    assert one.exit_code == 0 and one.stdout and several.stdout == one.stdout


def test_an_address_without_a_scheduler_is_refused_before_any_work(folder, monkeypatch):
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the extra `cluster`")
    monkeypatch.setattr("costl.pipeline.run.cluster_client._CONNECT_S", 0.5)
    monkeypatch.setattr("costl.search.open_library.update_library", lambda *_, **__: pytest.fail("indexed"))
    with pytest.raises(UsageError, match=r"tcp://127\.0\.0\.1:1: no Dask scheduler answers there"):
        open_library(folder, cluster="tcp://127.0.0.1:1")

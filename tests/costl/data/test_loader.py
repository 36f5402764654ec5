"""The loader: the same batches from threads and workers, memory that does not grow, damaged parts named."""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from costl.commands import main
from costl.data.annotations import Query
from costl.data.batch import collate
from costl.data.loader import Loader
from costl.data.queries import read_queries
from costl.data.sampler import PlannedBatch, plan_epoch
from costl.pipeline.cache.index import Index, read_index, write_index
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.grid import Grid


def plan_of(features: CacheReader, *, seed: int = 0, **options) -> list[PlannedBatch]:
    queries = read_queries(features, "train")
    generator = torch.Generator().manual_seed(seed)
    return plan_epoch(queries, features, batch_size=6, negative_pairs=True, generator=generator, **options)


def equal(a: object, b: object) -> bool:
    if is_dataclass(a) and not isinstance(a, Query):
        return all(equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def damage(world, folder: Path, damage_kind: str) -> tuple[Path, str]:
    """The cache of a copy of the world in which the part of one training video is damaged, and the name of the part."""
    features = CacheReader(world.copy(folder).cache)
    return features.path, damage_part(features, read_queries(features, "train")[0].vid, damage_kind)


def damage_part(features: CacheReader, vid: str, damage_kind: str) -> str:
    """Damages the part of a video; -> its name."""
    part, tokens = features.part_path(vid), features.array_locations(vid)["tokens"]
    content = bytearray(part.read_bytes())
    if damage_kind == "flipped bit":
        content[tokens.offset + tokens.size // 2] ^= 0x04
    else:
        del content[tokens.offset + tokens.size // 2 :]
    part.write_bytes(bytes(content))
    return part.name


def test_workers_read_the_batches_of_the_thread_and_name_a_damaged_part(world, tmp_path):
    features = CacheReader(world.copy(tmp_path).cache)
    damaged = read_queries(features, "train")[0].vid
    state = torch.get_rng_state()
    with Loader(features, patches=True) as thread, Loader(features, patches=True, workers=2) as workers:
        for seed in (0, 1):  # the workers of one epoch also read the next
            plan = [p for p in plan_of(features, seed=seed) if damaged not in {query.vid for query in p.queries}]
            expected = [collate(p.queries, features, patches=True, negative_pairs=p.negative_pairs) for p in plan]
            for loader in (thread, workers):
                read = list(loader.batches(plan))
                assert len(read) == len(plan) and all(map(equal, read, expected))
            assert plan
        assert list(workers.batches([])) == []
        part = damage_part(features, damaged, "flipped bit")
        with pytest.raises(CacheError, match=part):
            list(workers.batches(plan_of(features)))
        batches = workers.batches(plan)
        next(batches)
        processes = [p for p in multiprocessing.active_children() if not p.name.startswith("Loky")]  # another test's: joblib
        assert len(processes) == 2
        batches.close()
    for process in processes:
        process.join(20)
        assert not process.is_alive()
    assert torch.equal(torch.get_rng_state(), state), "a random number was drawn"


def end_process(*_: object) -> None:
    os._exit(1)


def test_a_worker_that_dies_is_reported(world, monkeypatch):
    features = CacheReader(world.cache)
    monkeypatch.setattr(features, "grid", end_process)  # the worker gets a copy
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))  # not every 5 s
    with (
        Loader(features, patches=True, workers=1) as loader,
        pytest.raises(CostlError, match=r"ended unexpectedly.*Set train\.workers lower"),
    ):
        list(loader.batches(plan_of(CacheReader(world.cache))))


def grid_without_shared_memory(features: CacheReader, video_id: str) -> Grid:
    torch.Tensor.share_memory_ = shared_memory_is_full
    return features.grid(video_id)


def shared_memory_is_full(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)")


def test_a_batch_that_does_not_fit_into_shared_memory_is_reported(world, monkeypatch):
    features = CacheReader(world.cache)
    monkeypatch.setattr(features, "grid", partial(grid_without_shared_memory, CacheReader(world.cache)))
    with (
        Loader(features, patches=True, workers=1) as loader,
        pytest.raises(CostlError, match=r"No space left.*Set train\.workers=0.*--shm-size"),
    ):
        list(loader.batches(plan_of(CacheReader(world.cache))))


@pytest.mark.parametrize("damage_kind", ["flipped bit", "cut short"])
def test_a_damaged_part_stops_training_with_its_name_and_exit_code_3(world, tmp_path, damage_kind):
    cache, part = damage(world, tmp_path, damage_kind)
    arguments = ["train", "--cache", str(cache), "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3 and part in result.stderr, result.stderr


def test_a_part_is_verified_once(world, monkeypatch):
    features = CacheReader(world.cache)
    verified: list[str] = []
    monkeypatch.setattr(features, "verify", verified.append)
    with Loader(features, patches=True) as loader:
        for seed in (0, 1):
            list(loader.batches(plan_of(features, seed=seed)))
    assert sorted(verified) == sorted({query.vid for query in read_queries(features, "train")})


# --- memory ------------------------------------------------------------------------------------------------------


def memory_growth_mb(features: CacheReader, queries: list[Query]) -> float:
    """By damage_kind much this process is larger than before, at most, while an epoch is read."""

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    plan = plan_epoch(queries, features, batch_size=16, negative_pairs=False, generator=torch.Generator())
    before = resident_mb()
    with Loader(features, patches=True) as loader:
        return max(resident_mb() for _ in loader.batches(plan)) - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_videos(world, tmp_path):
    copy = world.copy(tmp_path)
    index = read_index(copy.cache)
    growth_mb: dict[int, float] = {}
    (row, *_), text = index.rows, read_queries(CacheReader(copy.cache), "train")[0].query
    for videos in (50, 300):
        names = [f"v{i:04d}" for i in range(videos)]
        for name in names[len(growth_mb) * 50 :]:  # hard links to one file
            os.link(parts_folder(copy.cache) / row.part, parts_folder(copy.cache) / f"{name}.h5")
        rows = [replace(row, id=name, name=name, part=f"{name}.h5") for name in names]
        write_index(copy.cache, Index(index.contents, rows, index.words_file))
        queries = [Query(i, text, name, row.duration_s, ((2.0, 6.0),)) for i, name in enumerate(names)]
        growth_mb[videos] = memory_growth_mb(CacheReader(copy.cache), queries)
    tokens = CacheReader(copy.cache).tokens("v0000")
    all_mb = 300 * 4 * tokens.size / 1e6  # as float32, as batches hold them
    assert all_mb > 200
    assert growth_mb[300] < growth_mb[50] + all_mb / 8, growth_mb

"""Reading ahead: the same batches whoever reads them, memory that stays, damage that is named, batches of similar lengths."""

from __future__ import annotations

import os
import random
import statistics
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costl.commands import main
from costl.data import loader as module
from costl.data.annotations import Query
from costl.data.batch import Batch, Planned, collate, plan_epoch
from costl.data.loader import Loader
from costl.data.splits import read_queries
from costl.pipeline.cache.index import Index, read_index, write_index
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CacheError, CostlError
from costl.pipeline.grid import Grid


def plan_of(features: CacheReader, *, seed: int = 0, **options) -> list[Planned]:
    queries, draw = read_queries(features, "train"), torch.Generator().manual_seed(seed)
    return plan_epoch(queries, features, batch_size=6, wrong=True, generator=draw, **options)


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch)]
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def damage(world, folder: Path, how: str) -> tuple[Path, str]:
    """A copy of the world in which the part of one video of training is broken; -> its cache, the part's name."""
    copy = world.copy(folder)
    features = CacheReader(copy.cache)
    vid = read_queries(features, "train")[0].vid
    part, tokens = features.part_path(vid), features.arrays(vid)["tokens"]
    content = bytearray(part.read_bytes())
    if how == "flipped":
        content[tokens.offset + tokens.size // 2] ^= 0x04
    else:
        del content[tokens.offset + tokens.size // 2 :]
    part.write_bytes(bytes(content))
    return copy.cache, part.name


def test_processes_give_the_same_batches_in_the_same_order_and_name_a_damaged_part(world, tmp_path):
    features = CacheReader(world.cache)
    with Loader(features, patches=True) as thread, Loader(features, patches=True, workers=2) as processes:
        for seed in (0, 1):  # the processes of one epoch go on reading in the next
            plan = plan_of(features, seed=seed)
            plain = [collate(p.queries, features, patches=True, wrong=p.wrong) for p in plan]
            for loader in (thread, processes):
                read = list(loader.batches(plan))
                assert len(read) == len(plan) and all(map(equal, read, plain))
        assert list(processes.batches([])) == []
    cache, part = damage(world, tmp_path, "flipped")
    with Loader(CacheReader(cache), patches=True, workers=1) as loader, pytest.raises(CacheError, match=part):
        list(loader.batches(plan))


def test_a_process_that_dies_is_told_of(world, monkeypatch):
    features = CacheReader(world.cache)
    monkeypatch.setattr(module, "_begin", partial(os._exit, 1))
    with (
        Loader(features, patches=True, workers=1) as loader,
        pytest.raises(CostlError, match=r"ended by itself.*Set train\.workers lower"),
    ):
        list(loader.batches(plan_of(features)))


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_part_stops_training_with_its_name_and_exit_code_3(world, tmp_path, how):
    cache, part = damage(world, tmp_path, how)
    arguments = ["train", "--cache", str(cache), "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3 and part in result.stderr, result.stderr


def test_a_part_is_checked_once(world, monkeypatch):
    features, checked = CacheReader(world.cache), []
    monkeypatch.setattr(features, "verify", checked.append)
    with Loader(features, patches=True) as loader:
        for seed in (0, 1):
            list(loader.batches(plan_of(features, seed=seed)))
    assert sorted(checked) == sorted({query.vid for query in read_queries(features, "train")})


# --- memory ------------------------------------------------------------------------------------------------------


def grown_mb(features: CacheReader, queries: list[Query]) -> float:
    """By how much this process is larger than before, at most, while an epoch is read."""

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    plan = plan_epoch(queries, features, batch_size=16, wrong=False, generator=torch.Generator())
    before = resident_mb()
    with Loader(features, patches=True) as loader:
        return max(resident_mb() for _ in loader.batches(plan)) - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_videos(world, tmp_path):
    copy = world.copy(tmp_path)
    index, grown = read_index(copy.cache), {}
    (row, *_), text = index.rows, read_queries(CacheReader(copy.cache), "train")[0].query
    for videos in (50, 1000):
        names = [f"v{i:04d}" for i in range(videos)]
        for name in names[len(grown) * 50 :]:  # all are one file
            os.link(parts_folder(copy.cache) / row.part, parts_folder(copy.cache) / f"{name}.h5")
        rows = [replace(row, id=name, name=name, part=f"{name}.h5") for name in names]
        write_index(copy.cache, Index(index.contents, rows, index.words))
        queries = [Query(i, text, name, row.duration_s, ((2.0, 6.0),)) for i, name in enumerate(names)]
        grown[videos] = grown_mb(CacheReader(copy.cache), queries)
    tokens = CacheReader(copy.cache).tokens("v0000")
    all_mb = 1000 * 4 * tokens.size / 1e6  # as float32, as batches hold them
    assert all_mb > 200
    assert grown[1000] < grown[50] + all_mb / 8, grown


# --- batches of similar lengths ----------------------------------------------------------------------------------


class Lengths:
    """A cache of which nothing but lengths may be asked: planning reads nothing."""

    def __init__(self, clips: dict[str, int]):
        ones = np.ones(1, np.float32)
        self.clips, self.fps, self.patch_grid = clips, 0.5, (1, 1)
        self.joint = Joint(ones, ones, 1e-5, np.ones((1, 1), np.float32), 1.0)

    def grid(self, video_id: str) -> Grid:
        return Grid(self.fps, 2.0 * self.clips[video_id])

    def tokens(self, video_id: str, *, clips=slice(None), patches: bool = True) -> np.ndarray:
        raise AssertionError(video_id)

    def words(self, query: str) -> Words:
        raise AssertionError(query)


def asked(clips: list[int], each: int) -> tuple[list[Query], Lengths]:
    features = Lengths({f"v{i}": count for i, count in enumerate(clips)})
    queries = [
        Query(100 * i + j, f"text {j}", f"v{i}", 2.0 * count) for i, count in enumerate(clips) for j in range(each)
    ]
    return queries, features


def planned(queries, features, *, bucket: int, size: int = 8, seed: int = 0, wrong: bool = True) -> list[Planned]:
    draw = torch.Generator().manual_seed(seed)
    return plan_epoch(queries, features, batch_size=size, wrong=wrong, generator=draw, bucket_batches=bucket)


def padding(plan: list[Planned], features: Lengths) -> float:
    """The share of clips that are none."""
    lengths = [[features.clips[vid] for vid in {query.vid for query in some.queries}] for some in plan]
    return 1 - sum(map(sum, lengths)) / sum(max(some) * len(some) for some in lengths)


@settings(max_examples=40, deadline=None)
@given(
    clips=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    each=st.integers(1, 20),
    size=st.integers(1, 16),
    bucket=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_buckets_ask_every_query_once_in_batches_that_are_as_allowed(clips, each, size, bucket, seed):
    queries, features = asked(clips, each)
    plan = planned(queries, features, bucket=bucket, size=size, seed=seed)
    assert sorted(query.qid for some in plan for query in some.queries) == sorted(query.qid for query in queries)
    assert max(len(some.queries) for some in plan) <= size
    assert plan == planned(queries, features, bucket=bucket, size=size, seed=seed)
    for some in plan:
        vids = [query.vid for query in some.queries]
        assert len(dict.fromkeys(vids)) == sum(a != b for a, b in zip(vids, [None, *vids], strict=False))  # one handful
        assert all(some.queries[i].vid != vids[j] for i, j in some.wrong)


def test_buckets_save_padding_and_are_another_order_in_every_epoch():
    draw = random.Random(0)
    queries, features = asked([round(draw.lognormvariate(3, 0.8)) + 1 for _ in range(400)], 1)
    saved = {bucket: padding(planned(queries, features, bucket=bucket), features) for bucket in (1, 2, 8, 32)}
    assert saved[1] > saved[2] > saved[8] > saved[32] and saved[8] < saved[1] / 2
    assert {len(planned(queries, features, bucket=bucket)) for bucket in saved} == {50}
    one, other = (planned(queries, features, bucket=8, seed=seed) for seed in (1, 2))
    assert len(partners(one) & partners(other)) < len(partners(one)) / 2  # who meets whom changes as well
    lengths = [statistics.mean(features.clips[query.vid] for query in some.queries) for some in one]
    assert abs(np.corrcoef(lengths[:-1], lengths[1:])[0, 1]) < 0.5  # and short batches do not come first


def partners(plan: list[Planned]) -> set[tuple[str, str]]:
    return {(a.vid, b.vid) for some in plan for a in some.queries for b in some.queries if a.vid < b.vid}


def test_without_buckets_the_order_is_the_one_it_always_was():
    queries, features = asked([5, 9, 7, 5, 30, 2], 2)
    found = [[query.qid for query in some.queries] for some in planned(queries, features, bucket=1, size=4)]
    assert found == [[201, 200, 400, 401], [500, 501, 100, 101], [301, 300, 0, 1]]

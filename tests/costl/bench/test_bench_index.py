"""The measurement of the index runs, its table is complete, and reading an epoch leaves no file open."""

from __future__ import annotations

import os
import sys

import pytest

from costl.bench.index import IndexCost, bench_index, epoch_ms, write_synthetic
from costl.pipeline.cache.reader import CacheReader


def test_a_table_has_a_line_for_each_measurement_and_the_ratio():
    table = IndexCost({"1000": {"open, s": 0.02}, "10148": {"open, s": 0.21}}).lines()
    assert table[0].split() == ["1000", "videos", "10148", "videos", "ratio"]
    assert table[1].split() == ["open,", "s", "0.020", "0.210", "10.50"]


def test_both_caches_are_written_measured_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("costl.bench.index.FEW_VIDEOS", 8)
    cost = bench_index(videos=24, folder=tmp_path)
    assert list(cost.rows) == ["8", "24"] and list(tmp_path.iterdir()) == []
    for row in cost.rows.values():
        assert list(row) == [
            *("open, s", "open, MB", "the first words, s", "status, s", "verify --quick, s"),
            *("write index, s", "first epoch, ms a sample", "next epochs, ms a sample"),
        ]
        assert all(value > 0 for name, value in row.items() if name != "open, MB")


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_an_epoch_leaves_no_part_open(tmp_path):
    write_synthetic(tmp_path / "feats.h5", videos=60, word_width=8)
    features = CacheReader(tmp_path / "feats.h5")
    before = len(os.listdir("/proc/self/fd"))
    epoch_ms(features)
    # The two maps of the words, however many parts were read.
    assert len(os.listdir("/proc/self/fd")) <= before + 2

"""The measurement of the index runs, its table is complete, and reading an epoch leaves no file open."""

from __future__ import annotations

import os
import sys

import pytest

from costl.bench.index import bench_index, read_epoch, write_synthetic
from costl.pipeline.cache.reader import CacheReader


def test_both_caches_are_written_measured_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("costl.bench.index.FEW_VIDEOS", 8)
    header, _, *rows = bench_index(videos=24, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [cell.strip() for cell in header.split("|")[2:-1]] == ["8 videos", "24 videos", "ratio"]
    cells = {row.split("|")[1].strip(): row.split("|")[2:4] for row in rows}
    assert set(cells) - {"open, MB"} == {
        *("open, s", "write index, s", "status, s", "verify --quick, s"),
        *("first epoch, ms a sample", "next epochs, ms a sample"),
    }
    assert all(float(value) > 0 for name, values in cells.items() if name != "open, MB" for value in values)


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_an_epoch_leaves_no_part_open(tmp_path):
    write_synthetic(tmp_path / "feats.h5", videos=60, word_width=8)
    features = CacheReader(tmp_path / "feats.h5")
    before = len(os.listdir("/proc/self/fd"))
    read_epoch(features)
    # The two maps of the words, however many parts were read.
    assert len(os.listdir("/proc/self/fd")) <= before + 2

"""The bench of a scan runs, its rows are complete, and what it compares answers the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from costl.pipeline.bench import scan
from costl.pipeline.bench.measure import can_drop_pages
from costl.pipeline.bench.scan import MANY, TOP, bench_scan, random_contents, write_library
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.library.folder import CACHE, VECTORS
from costl.pipeline.library.vectors import open_vectors, verify_vectors
from costl.pipeline.library.vectors_update import update_vectors

WIDTH = 32


def write(folder: Path, videos: int) -> Path:
    """The search file in the index of a library with so many videos."""
    index = folder / ".costl"
    write_library(index, random_contents({}, {}, WIDTH), videos, lambda _: None)
    return index / VECTORS


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The search file of 210 videos, which takes more than one block to write."""
    return write(tmp_path_factory.mktemp("library"), 210)


def cells_of(lines: list[str]) -> dict[str, list[float]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return {name: [float(cell) for cell in cells] for name, *cells in rows if cells[0][:1].isdigit()}


def test_the_table_is_complete(tmp_path):
    lines = bench_scan(write(tmp_path, 20).parent, videos=20, repeats=1)
    assert "1 hours, 1800 clips, 0.00 GB" in lines[0]
    cells = cells_of(lines)
    names = {"read", "one sentence", f"{MANY} sentences", "one sentence, usearch", f"{MANY} sentences, usearch"}
    names |= {"one sentence, torch float16", "one sentence, numpy float32 in blocks"}
    names |= {"read, cold", "one sentence, cold"} if can_drop_pages() else set()
    assert set(cells) == names
    assert cells["read"][1] == 1.0 and all(row[0] > 0 for row in cells.values())
    assert any(line.startswith("Opening 20 videos") and "Adding one video" in line for line in lines)
    assert len(open_vectors(tmp_path / ".costl" / VECTORS).keys) == 23


def test_usearch_is_left_out_with_a_reason_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_has_usearch", lambda: False)
    lines = bench_scan(write(tmp_path, 4).parent, videos=4, repeats=1)
    assert not any("sentence, usearch" in line for line in lines)
    assert "usearch is not installed" in lines[-1]


def test_the_search_file_is_whole_and_that_of_its_cache(library):
    verify_vectors(library)
    cache = CacheReader(library.parent / CACHE)
    written = open_vectors(library)
    assert update_vectors(library, cache).keys == written.keys  # nothing to do: there are no parts that could be read
    assert np.allclose(np.linalg.norm(written.array.astype(np.float32), axis=1), 1.0, atol=1e-3)
    assert not np.array_equal(written.of(0), written.of(200))


def test_all_compared_searches_find_the_same_clips(library):
    works = scan._works(open_vectors(library))
    (own,) = works["one sentence"]()
    array = open_vectors(library).array.astype(np.float32)
    expected = set(np.argsort(-(array @ scan._sentences(MANY, WIDTH)[0]))[:TOP].tolist())
    for name in ("one sentence, usearch", "one sentence, torch float16", "one sentence, numpy float32 in blocks"):
        result = works[name]()
        indices = getattr(result, "keys", getattr(result, "indices", result))
        # Similarities that are rounded in another way may change places at the end of the list.
        assert len(expected & set(np.asarray(indices).tolist())) >= TOP - 3, name
    assert len(expected & set(own.tolist())) >= TOP - 3


@pytest.mark.parametrize("count", [1, 50, 1024, 5000])
def test_the_best_are_found_in_blocks(count):
    row = np.random.default_rng(count).normal(size=count).astype(np.float32)
    assert scan._top(row).tolist() == np.argsort(-row)[:TOP].tolist()

"""The store of features stays below its size: the least recently used goes first, and nothing else is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.errors import UsageError
from costl.pipeline.library.store_limit import mark_used, parse_size, remove_least_used

SETTINGS = ("0123456789abcdef", "f" * 16)


def stored(store: Path, number: int, *, size: int = 1000, used_s: float) -> Path:
    """A cache of `size` bytes; the parts are nine tenths of it."""
    path = store / SETTINGS[number % 2] / f"{number:064x}.h5"
    words = path.with_name(f"{path.name}.parts") / "words"
    words.mkdir(parents=True)
    path.write_bytes(b"i" * (size // 10))
    (words.parent / "part.h5").write_bytes(b"p" * (size - size // 10))
    os.utime(path, (used_s, used_s))
    return path


@pytest.mark.parametrize(
    ("max_bytes", "removed"),
    [(5000, []), (4000, []), (3999, [2]), (3000, [2]), (2500, [2, 0]), (0, [2, 0, 1])],
)
def test_the_least_recently_used_go_first(tmp_path, max_bytes, removed):
    paths = [stored(tmp_path, number, used_s=used_s) for number, used_s in enumerate([20, 30, 10, 5])]
    newest = paths[3]  # it was just made, though its time is the oldest
    assert remove_least_used(tmp_path, max_bytes, keep=newest) == [paths[number] for number in removed]
    for number, path in enumerate(paths):
        is_there = number not in removed
        assert path.exists() == path.with_name(f"{path.name}.parts").exists() == is_there


def test_using_features_makes_them_the_last_to_go(tmp_path):
    paths = [stored(tmp_path, number, used_s=used_s) for number, used_s in enumerate([10, 20, 30])]
    mark_used(paths[0])
    assert remove_least_used(tmp_path, 2000, keep=paths[2]) == [paths[1]]


def test_what_is_being_written_and_what_is_not_ours_stays(tmp_path):
    paths = [stored(tmp_path, number, used_s=10 + number) for number in range(2)]
    mine = [tmp_path / "videos" / f"{'0' * 64}.h5", tmp_path / SETTINGS[0] / "feats.h5", tmp_path / "x.h5"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"m" * 10_000)
    with locked_cache(paths[0]):
        assert remove_least_used(tmp_path, 0, keep=tmp_path / "none.h5") == [paths[1]]
    assert all(path.exists() for path in (*mine, paths[0]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20GB", 2 * 10**10), ("20 gb", 2 * 10**10), ("1.5TB", 15 * 10**11), ("500MB", 5 * 10**8), ("7k", 7000), ("12b", 12)],
)
def test_sizes_are_read(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 apples", "1e9", "20GiB", "nan"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match=r"not a size\. Expected a number with a unit"):
        parse_size(text)


def test_proxies_count_and_go_as_features_do(tmp_path):
    features = stored(tmp_path, 1, used_s=20)
    proxies = [tmp_path / "proxies" / f"{number:064x}.{suffix}" for number, suffix in enumerate(("mp4", "webm"))]
    other = tmp_path / "proxies" / "holiday.mp4"
    other.parent.mkdir()
    for path, used_s in zip((*proxies, other), (10, 30, 1), strict=True):
        path.write_bytes(b"v" * 1000)
        os.utime(path, (used_s, used_s))
    assert remove_least_used(tmp_path, 2000, keep=tmp_path / "none") == [proxies[0]]
    assert remove_least_used(tmp_path, 0, keep=proxies[1]) == [features]
    assert not proxies[0].exists() and proxies[1].exists() and other.exists()

"""Disk errors at any call: the command stops at once, its message says what to do, and nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import pytest
from processes import check_cache, contents_of, parts_of
from two_video_cache import VIDEOS, TextEncoder, annotation_line, write_cache

from costl.pipeline import add_queries
from costl.pipeline.cache import hdf5
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.words import stored_words
from costl.pipeline.errors import CacheError

REMEDIES = {
    errno.ENOSPC: r"No space left on device\)\. [\d.]+ MB are free there\. Make room",
    errno.EACCES: r"Permission denied\)\. Change its permissions",
    errno.EIO: r"Input/output error\)\. The disk, or the network to it, fails",
}
CALLS = (
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (os, "write"),
    (h5py.File, "__init__"),
    (h5py.Group, "create_dataset"),
    (h5py.AttributeManager, "create"),
)


@contextmanager
def failing(number: int, code: int) -> Iterator[list[str]]:
    """The `number`-th call that writes and all later ones fail, as on a full disk; yields the names of the calls."""
    calls: list[str] = []

    def wrap(call: Callable, name: str) -> Callable:
        def wrapped(*arguments, **options):
            reads = name == "open" and not arguments[1] & os.O_CREAT  # as for the fsync of a folder
            reads |= name == "__init__" and arguments[2:3] != ("w",)
            if not reads:
                calls.append(name)
                if len(calls) >= number:
                    raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, wrap(getattr(owner, name), name))
        yield calls


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
@pytest.mark.promise(3)
def test_a_disk_error_at_any_call_stops_an_extraction_and_loses_nothing(tmp_path, code, report_figure):
    write_cache(tmp_path / "whole.h5", [])
    truth = contents_of(tmp_path / "whole.h5")
    truth["feats.h5"] = truth.pop("whole.h5")
    number = 0
    reported_counts = []
    while True:
        # One kind of error at every call in turn, the other kinds at every seventh.
        number += 1 if code == errno.ENOSPC else 7
        cache = tmp_path / str(number) / "feats.h5"
        reported: list[str] = []
        cache.parent.mkdir()
        with failing(number, code) as calls:
            try:
                write_cache(cache, reported)
            except CacheError as error:
                assert matches(REMEDIES[code], error), calls
                assert "What was finished is kept." in str(error)
            else:
                break
        assert not list(cache.parent.rglob(".*.tmp"))
        check_cache(cache, reported)
        reported_counts.append(len(reported))
        if number % 5 == 1:
            write_cache(cache, [])
            assert contents_of(cache) == truth, (number, calls)
    report_figure(f"{errno.errorcode[code]}: an extraction stopped at {len(reported_counts)} of its {len(calls)} calls")
    assert number > 50 and {*reported_counts} >= {0, 1, 2}, "calls for queries, index and parts must all fail"


def matches(pattern: str, error: Exception) -> bool:
    return re.search(pattern, str(error)) is not None


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_write_that_fails_halfway_leaves_the_earlier_files_whole(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    outcomes = set()
    try:
        for limit in (0, 100, 512, 2048, 4000, 4096, 5000, 8192, 9000, 12_288, 14_000, 20_480, 1 << 20):
            cache = tmp_path / str(limit) / "feats.h5"
            reported: list[str] = []
            cache.parent.mkdir()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                write_cache(cache, reported)
                outcomes.add("whole")
            except CacheError as error:
                outcomes.add("refused")
                assert "File too large" in str(error), error
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert not list(cache.parent.rglob(".*.tmp"))
            check_cache(cache, reported)
            write_cache(cache, [])
            assert CacheReader(cache).video_ids == list(VIDEOS)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert outcomes == {"whole", "refused"}


# Queries that are added


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(add_queries, "reload_encoder", lambda *_, **__: TextEncoder())
    write_cache(tmp_path / "feats.h5", [])
    (tmp_path / "more.jsonl").write_text(annotation_line("a bird", "b"), encoding="utf-8")
    return tmp_path / "feats.h5"


def add(cache: Path) -> add_queries.AddQueriesReport:
    return add_queries.add_queries(cache, cache.with_name("more.jsonl"), weights="here")


def splits_and_queries(cache: Path) -> tuple[list[str], list[str]]:
    """The splits and the queries with text features, after a check of them all."""
    reader = CacheReader(cache)
    reader.verify_words()
    for query in ("a dog", "a cat", *(["a bird"] if "more" in reader.splits else [])):
        assert reader.words(query).texts == (query,)
    return reader.splits, sorted(stored_words(cache))


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
def test_a_disk_error_while_queries_are_added_leaves_one_whole_index(cache, code):
    old = splits_and_queries(cache)
    parts = {part.name: part.read_bytes() for part in parts_of(cache)}
    number = 0
    outcomes = []
    while True:
        number += 1 if code == errno.ENOSPC else 7
        with failing(number, code) as calls:
            try:
                add(cache)
            except CacheError as error:
                assert matches(REMEDIES[code], error), calls
            else:
                break
        assert not list(cache.parent.rglob(".*.tmp"))
        outcomes.append(splits_and_queries(cache))
    new = (["more", "test", "train"], ["a bird", "a cat", "a dog"])
    assert splits_and_queries(cache) == new and number > 15
    assert old in outcomes and all(outcome in (old, new) for outcome in outcomes)
    assert {part.name: part.read_bytes() for part in parts_of(cache)} == parts


def test_a_kill_while_queries_are_added_leaves_one_whole_index(cache, tmp_path):
    """A kill leaves the files as they are before a call: they are read before each call, and those that differ opened later."""
    states: list[dict[str, bytes]] = []
    calls: list[str] = []

    def wrap(call: Callable) -> Callable:
        def wrapped(*arguments, **options):
            calls.append(call.__name__)
            files = contents_of(cache)
            if files not in states[-1:]:
                states.append(files)
            return call(*arguments, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (*CALLS, (Path, "unlink")):
            patch.setattr(owner, name, wrap(getattr(owner, name)))
        add(cache)
    splits = []
    for number, files in enumerate(states):
        copy = tmp_path / str(number) / "feats.h5"
        for name, data in files.items():
            path = copy if name == "feats.h5" else copy.with_name("feats.h5.parts") / "words" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        splits.append(splits_and_queries(copy)[0])
    assert splits == sorted(splits, key=len) and len(calls) > 20
    assert splits[0] == ["test", "train"] and splits[-1] == ["more", "test", "train"]


def test_an_hdf5_error_without_a_code_has_a_next_step():
    assert "Check free space" in str(hdf5.write_error(Path("x.h5"), RuntimeError("something else")))

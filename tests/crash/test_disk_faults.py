"""A disk that refuses at the n-th call, whichever that is: the run stops at once and says what to do, nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from processes import contents_of, is_whole, parts_of

from costl.pipeline import add_queries as additions
from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.words import known_words
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import Joint, Words
from costl.pipeline.errors import CacheError

VIDEOS = ("a", "b")
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


def contents() -> Contents:
    rng = np.random.default_rng(0)
    weight, projection = rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    joint = Joint(norm_weight=weight, norm_bias=weight, norm_eps=1e-5, projection=projection, logit_scale=9.0)
    return Contents({"model": "tiny", "weights": "0" * 64, "precision": "fp32"}, 0.5, (1, 2), joint, ROWS)


def words(*queries: str) -> dict[str, Words]:
    token, sentence = np.ones((1, 5), np.float16), np.ones(3, np.float32)
    return {query: Words(token * len(query), sentence * len(query), texts=(query,)) for query in queries}


def row(query: str, video: str = "a") -> str:
    return f'{{"qid": 1, "query": "{query}", "vid": "{video}", "duration": 4.0}}\n'


ROWS = {"train": row("a dog"), "test": row("a cat")}


def fill(cache: Path, stored: list[str]) -> None:
    """One extraction of two videos; those whose part has been reported as stored are noted."""
    rng = np.random.default_rng(1)
    tokens = {name: rng.normal(size=(2, 3, 4)).astype(np.float16) for name in VIDEOS}
    times_s = np.array([1.0, 3.0])
    with CacheWriter(cache, contents(), words("a dog", "a cat")) as writer:
        kept = [name for name in VIDEOS if writer.keep(name, f"hash of {name}")]
        writer.write_index()
        for name in VIDEOS:
            if name not in kept:
                content = f"hash of {name}"
                writer.store(name, tokens=tokens[name], times_s=times_s, duration_s=4.0, content_hash=content)
            stored.append(name)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    """Nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@contextmanager
def failing(number: int, code: int) -> Iterator[list[str]]:
    """The `number`-th of all the calls by which a file of ours comes to be fails, and every later one: a full disk stays
    full. Gives the names of the calls made."""
    made: list[str] = []

    def step(call: Callable, name: str) -> Callable:
        def instead(*arguments, **options):
            reads = name == "open" and not arguments[1] & os.O_CREAT  # to fsync a folder, say
            reads |= name == "__init__" and arguments[2:3] != ("w",)
            if not reads:
                made.append(name)
                if len(made) >= number:
                    raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return instead

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, step(getattr(owner, name), name))
        yield made


def look(cache: Path, stored: list[str]) -> None:
    """What was reported is whole, and an index that stands is one that can be read with its words."""
    assert not list(cache.parent.rglob(".*.tmp"))
    names = {part.stem for part in parts_of(cache)}
    assert names >= set(stored) and all(map(is_whole, parts_of(cache)))
    if cache.exists():
        reader = CacheReader(cache)
        reader.verify_words()
        for name in reader.video_ids:
            reader.verify(name)


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
@pytest.mark.promise(3)
def test_a_disk_that_refuses_stops_an_extraction_wherever_it_is_and_loses_nothing(tmp_path, code, tell):
    fill(tmp_path / "whole.h5", [])
    truth = contents_of(tmp_path / "whole.h5")
    truth["feats.h5"] = truth.pop("whole.h5")
    number, kept = 0, []
    while True:
        # Every call in turn for one way to fail; the others are spread over them.
        number += 1 if code == errno.ENOSPC else 7
        cache, stored = tmp_path / str(number) / "feats.h5", []
        cache.parent.mkdir()
        with failing(number, code) as made:
            try:
                fill(cache, stored)
            except CacheError as error:
                assert _says(error, REMEDIES[code]), made
                assert "What was finished is kept." in str(error)
            else:
                break
        look(cache, stored)
        kept.append(len(stored))
        if number % 5 == 1:
            fill(cache, [])
            assert contents_of(cache) == truth, (number, made)
    tell(f"{errno.errorcode[code]}: an extraction refused at {len(kept)} of its {len(made)} calls")
    assert number > 50 and {*kept} >= {0, 1, 2}, "every call of words, index and parts had its turn"


def _says(error: Exception, pattern: str) -> bool:
    return re.search(pattern, str(error)) is not None


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_write_that_fails_in_the_middle_of_a_file_leaves_the_earlier_ones(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    outcomes = set()
    try:
        for limit in (0, 100, 512, 2048, 4000, 4096, 5000, 8192, 9000, 12_288, 14_000, 20_480, 1 << 20):
            cache, stored = tmp_path / str(limit) / "feats.h5", []
            cache.parent.mkdir()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                fill(cache, stored)
                outcomes.add("whole")
            except CacheError as error:
                outcomes.add("refused")
                assert "File too large" in str(error), error
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            look(cache, stored)
            fill(cache, [])
            assert CacheReader(cache).video_ids == list(VIDEOS)
    finally:
        signal.signal(signal.SIGXFSZ, former)
    assert outcomes == {"whole", "refused"}


# Words that are added


class _Clip:
    """In the place of CLIP: says that it is the one that made the cache."""

    def fingerprint(self) -> dict[str, str]:
        return dict(contents().fingerprint)

    def encode_text(self, queries: list[str]) -> list[Words]:
        return list(words(*queries).values())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(additions, "load_clip", lambda *_, **__: _Clip())
    fill(tmp_path / "feats.h5", [])
    (tmp_path / "more.jsonl").write_text(row("a bird", "b"), encoding="utf-8")
    return tmp_path / "feats.h5"


def add(cache: Path) -> additions.Addition:
    return additions.add_words(cache, cache.with_name("more.jsonl"), weights="here")


def answer(cache: Path) -> tuple[list[str], list[str]]:
    """The splits and the queries with words, all verified."""
    reader = CacheReader(cache)
    reader.verify_words()
    for query in ("a dog", "a cat", *(["a bird"] if "more" in reader.splits else [])):
        assert reader.words(query).texts == (query,)
    return reader.splits, sorted(known_words(cache))


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
def test_a_disk_that_refuses_leaves_the_old_index_or_the_new_one_when_words_are_added(cache, code):
    old, parts = answer(cache), {part.name: part.read_bytes() for part in parts_of(cache)}
    number, found = 0, []
    while True:
        number += 1 if code == errno.ENOSPC else 7
        with failing(number, code) as made:
            try:
                add(cache)
            except CacheError as error:
                assert _says(error, REMEDIES[code]), made
            else:
                break
        assert not list(cache.parent.rglob(".*.tmp"))
        found.append(answer(cache))
    new = (["more", "test", "train"], ["a bird", "a cat", "a dog"])
    assert old in found and answer(cache) == new and set(map(str, found)) <= {str(old), str(new)} and number > 15
    assert {part.name: part.read_bytes() for part in parts_of(cache)} == parts


def test_killed_at_any_moment_an_addition_leaves_the_old_index_or_the_new_one_with_its_words(cache, tmp_path):
    """What a kill would leave is what lies there before each call: it is copied, and then opened."""
    copies: list[Path] = []

    def step(call: Callable) -> Callable:
        def instead(*arguments, **options):
            copy = tmp_path / "copies" / str(len(copies)) / "feats.h5"
            copies.append(copy)
            for name, data in contents_of(cache).items():
                place = copy if name == "feats.h5" else copy.with_name("feats.h5.parts") / "words" / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            return call(*arguments, **options)

        return instead

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (*CALLS, (Path, "unlink")):
            patch.setattr(owner, name, step(getattr(owner, name)))
        add(cache)
    splits = [answer(copy)[0] for copy in copies]
    assert splits == sorted(splits, key=len) and len(splits) > 20
    assert splits[0] == ["test", "train"] and splits[-1] == ["more", "test", "train"]


def test_a_sentence_is_found_for_what_hdf5_says_in_words_alone():
    said = "Can't decrement id ref count (file write failed: time = now, errno = 28, error message = 'No space')"
    assert "No space left on device" in str(hdf5.unwritable(Path("x.h5"), RuntimeError(said)))
    assert "Check free space" in str(hdf5.unwritable(Path("x.h5"), RuntimeError("something else")))

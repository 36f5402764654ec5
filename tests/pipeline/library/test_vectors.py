"""The search file of a library: its vectors are those of the cache, whatever was added, removed, damaged or killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from small_cache import small_contents, unit_vectors

from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import JointSpace, TokenProjection
from costl.pipeline.errors import CacheError
from costl.pipeline.formats.files import locked
from costl.pipeline.library import vectors_update
from costl.pipeline.library.vectors import HEADER_BYTES, Vectors, header, open_vectors, verify_vectors
from costl.pipeline.library.vectors_table import TABLE, VectorsTable, read_table, write_table
from costl.pipeline.library.vectors_update import update_vectors

CLIPS = {"a": 3, "b": 5, "c": 1}
Videos = dict[str, tuple[int, int]]  # the number of clips and the seed of each video


def videos_of(*names: str) -> Videos:
    return {name: (CLIPS.get(name, 2), ord(name[0])) for name in names}


def write_cache(path: Path, videos: Videos, **changes) -> CacheReader:
    """A cache of exactly these videos; parts of earlier ones stay on the disk."""
    contents = small_contents(**changes)
    with CacheWriter(path, contents, {}) as writer:
        writer.write_index()
        for name, (clips, seed) in videos.items():
            rng = np.random.default_rng(seed)
            joint = unit_vectors(rng, clips, contents.joint.width) if contents.joint.is_known else None
            tokens = rng.normal(size=(clips, *contents.token_shape)).astype(np.float16)
            times_s = 2.0 * np.arange(clips)
            writer.store(name, tokens=tokens, joint=joint, times_s=times_s, duration_s=2.0 * clips, content_hash="")
        writer.record_without_features("broken", status="failed", reason="no video stream")
    return CacheReader(path)


def assert_same(vectors: Vectors, cache: CacheReader) -> None:
    """Asserts that the vectors are those of the cache, read through its own reader."""
    assert sorted(vectors.keys) == sorted(cache.video_ids) and not vectors.unreadable
    for index, name in enumerate(vectors.keys):
        assert np.array_equal(vectors.of(index), cache.joint_vectors(name).astype(np.float16)), name
        assert vectors.durations_s[index] == cache.row(name).duration_s
    assert vectors.total_clips == sum(cache.row(name).clips for name in cache.video_ids)
    assert vectors.starts.tolist() == [sum(vectors.clips[:index]) for index in range(len(vectors.keys))]
    assert (vectors.width, vectors.fps) == (cache.joint.width, cache.fps)


def data_file(folder: Path) -> Path:
    (path,) = folder.glob("vectors-*.f16")
    return path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the videos whose vectors are read from a cache."""
    names: list[str] = []
    original = CacheReader.joint_vectors

    def joint_vectors(self, name, **options):
        names.append(name)
        return original(self, name, **options)

    monkeypatch.setattr(CacheReader, "joint_vectors", joint_vectors)
    return names


def test_the_vectors_are_those_of_the_cache(tmp_path):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b", "c"))
    updated = update_vectors(tmp_path / "v", cache)
    assert_same(updated, cache)
    assert_same(open_vectors(tmp_path / "v"), cache)
    assert not updated.array.flags.writeable
    verify_vectors(tmp_path / "v")


def test_only_what_is_new_is_read_and_no_change_writes_nothing(tmp_path, reads):
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", videos_of("a", "b")))
    assert reads == ["a", "b"]
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b", "c"))
    inode = data_file(tmp_path / "v").stat().st_ino
    update_vectors(tmp_path / "v", cache)
    assert reads == ["a", "b", "c"] and data_file(tmp_path / "v").stat().st_ino == inode
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "v").iterdir()}
    vectors = update_vectors(tmp_path / "v", cache)
    assert len(reads) == 3 and {path: path.stat().st_mtime_ns for path in (tmp_path / "v").iterdir()} == before
    assert_same(vectors, cache)


def test_another_name_costs_nothing_and_copies_share_their_rows(tmp_path, reads):
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", {"a": (3, 1), "b": (5, 2)}))
    del reads[:]
    vectors = update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", {"moved": (3, 1), "b": (5, 2), "copy": (5, 2)}))
    assert reads == [] and len(vectors.array) == 8 and vectors.total_clips == 13
    assert_same(vectors, CacheReader(tmp_path / "feats.h5"))


def test_videos_that_are_gone_or_changed_are_no_longer_seen(tmp_path):
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", {"a": (3, 1), "b": (9, 2), "c": (4, 3)}))
    cache = write_cache(tmp_path / "feats.h5", {"b": (9, 2), "c": (2, 4)})
    vectors = update_vectors(tmp_path / "v", cache)
    assert_same(vectors, cache)
    assert len(vectors.array) == 11  # 7 of 16 rows were dead, so the file was written anew
    cache = write_cache(tmp_path / "feats.h5", {"b": (9, 2), "d": (1, 5)})
    vectors = update_vectors(tmp_path / "v", cache)
    assert_same(vectors, cache)
    assert len(vectors.array) == 12  # 2 of 11 rows are only masked
    verify_vectors(tmp_path / "v")


def test_a_file_is_written_anew_when_a_third_of_it_is_dead(tmp_path, reads):
    videos = {name: (2, seed) for seed, name in enumerate("abcdef")}
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", videos))
    first = data_file(tmp_path / "v")
    old = open_vectors(tmp_path / "v")
    old_values = old.array.copy()
    del reads[:], videos["a"]
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", videos))
    assert data_file(tmp_path / "v") == first
    del videos["d"]
    cache = write_cache(tmp_path / "feats.h5", videos)
    vectors = update_vectors(tmp_path / "v", cache)
    assert data_file(tmp_path / "v") != first and reads == []
    assert_same(vectors, cache)
    assert len(vectors.array) == vectors.total_clips == 8
    assert np.array_equal(old.array, old_values), "a reader of the old file was disturbed"


def test_every_video_may_go_and_come_back(tmp_path):
    for names in (("a",), (), ("b", "c"), ()):
        cache = write_cache(tmp_path / "feats.h5", videos_of(*names))
        assert_same(update_vectors(tmp_path / "v", cache), cache)
        assert_same(update_vectors(tmp_path / "v", cache), cache)


def test_a_random_history_ends_as_the_cache(tmp_path):
    rng = np.random.default_rng(7)
    for _ in range(12):
        names = [name for name in "abcdefgh" if rng.random() < 0.6]
        cache = write_cache(tmp_path / "feats.h5", {name: (1 + int(rng.integers(4)), int(rng.integers(3))) for name in names})
        vectors = update_vectors(tmp_path / "v", cache)
        assert_same(vectors, cache)
        alive = dict(zip(vectors.rows.tolist(), vectors.clips.tolist(), strict=True))
        assert 3 * sum(alive.values()) >= 2 * len(vectors.array)
        verify_vectors(tmp_path / "v")


def test_some_videos_can_be_selected_in_any_order(tmp_path):
    vectors = update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", videos_of("a", "b", "c")))
    chosen = vectors.select([2, 0])
    assert chosen.keys == ("c", "a") and chosen.starts.tolist() == [0, 1] and chosen.total_clips == 4
    assert np.array_equal(chosen.of(1), vectors.of(0))
    assert vectors.select([]).total_clips == 0


# Other caches


def test_a_library_of_another_encoder_is_made_again(tmp_path, reads):
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", videos_of("a", "b")))
    del reads[:]
    other = write_cache(tmp_path / "other.h5", videos_of("a", "b"), fingerprint={"model": "other", "fps": 0.5})
    assert_same(update_vectors(tmp_path / "v", other), other)
    assert reads == [*"ab", *"ab"]  # once by the update, once by the assertion
    wider = write_cache(tmp_path / "wider.h5", videos_of("a"), joint=JointSpace(width=6, logit_scale=100.0))
    assert_same(update_vectors(tmp_path / "v", wider), wider)


def test_vectors_of_a_cache_of_format_1_follow_from_its_frame_tokens(tmp_path):
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(8, 4)).astype(np.float32)
    projection = TokenProjection(np.ones(8, np.float32), np.zeros(8, np.float32), 1e-5, matrix)
    tokens = rng.normal(size=(5, 7, 8)).astype(np.float16)
    with CacheWriter(tmp_path / "feats.h5", small_contents(projection=projection), {}) as writer:
        writer.write_index()
        writer.store("a", tokens=tokens, times_s=np.arange(5.0), duration_s=10.0, content_hash="")
    vectors = update_vectors(tmp_path / "v", CacheReader(tmp_path / "feats.h5"))
    frames = tokens[:, 0].astype(np.float64)
    centred = frames - frames.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(frames.var(axis=1, keepdims=True) + 1e-5) @ matrix
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(vectors.of(0) - expected).max() < 1e-3


def test_a_cache_without_a_joint_space_is_refused(tmp_path):
    unknown = JointSpace(width=4, logit_scale=100.0, is_known=False)
    cache = write_cache(tmp_path / "feats.h5", videos_of("a"), joint=unknown)
    with pytest.raises(CacheError, match=r"feats\.h5: has no joint space.*Extract the videos"):
        update_vectors(tmp_path / "v", cache)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "not finite"])
def test_a_damaged_part_is_left_out_with_its_reason(tmp_path, damage):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b"))
    part = cache.part_path("a")
    whole = part.read_bytes()
    if damage == "missing":
        part.unlink()
    elif damage == "truncated":
        part.write_bytes(whole[:-200])
    else:
        location = cache.array_locations("a")["joint"]
        part.write_bytes(whole[: location.offset] + b"\xff\x7f" + whole[location.offset + 2 :])
    vectors = update_vectors(tmp_path / "v", cache)
    assert vectors.keys == ("b",) and list(vectors.unreadable) == ["a"] and "a.h5" in vectors.unreadable["a"]
    part.write_bytes(whole)
    assert_same(update_vectors(tmp_path / "v", CacheReader(cache.path)), cache)


# Damaged and foreign files


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def without_checks(folder: Path, **changes) -> None:
    """A table with a right checksum and wrong columns."""
    head, content = (folder / TABLE).read_bytes().split(b"\n")
    content = json.dumps(json.loads(content) | changes).encode()
    head = json.dumps({"format": 1, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    (folder / TABLE).write_bytes(head + b"\n" + content)


def move_data_outside(folder: Path) -> None:
    name = data_file(folder).name
    data_file(folder).rename(folder.parent / name)
    without_checks(folder, data=f"../{name}")


DAMAGE = {
    "no table": lambda folder: (folder / TABLE).unlink(),
    "an empty table": lambda folder: (folder / TABLE).write_bytes(b""),
    "a foreign table": lambda folder: (folder / TABLE).write_bytes(b"\x89PNG\r\n\x1a\n\0\0"),
    "a list as its header": lambda folder: (folder / TABLE).write_bytes(b"[1]\n{}"),
    "a flipped bit in the table": lambda folder: flip(folder / TABLE, (folder / TABLE).read_bytes().index(b'"a"') + 1),
    "half of the table": lambda folder: os.truncate(folder / TABLE, 200),
    "a table of another format": lambda folder: (folder / TABLE).write_bytes(b'{"format": 2, "sha256": ""}\n{}'),
    "a folder as the table": lambda folder: ((folder / TABLE).unlink(), (folder / TABLE).mkdir()),
    "no data": lambda folder: data_file(folder).unlink(),
    "half of the data": lambda folder: os.truncate(data_file(folder), HEADER_BYTES + 8),
    "no header": lambda folder: flip(data_file(folder), 3),
    "the data of another table": lambda folder: data_file(folder).rename(folder / "vectors-0123456789abcdef.f16"),
    "a path outside": move_data_outside,
    "rows after the end": lambda folder: without_checks(folder, rows=[0, 9]),
    "rows before the start": lambda folder: without_checks(folder, rows=[-1, 3]),
    "columns of different lengths": lambda folder: without_checks(folder, clips=[3]),
    "text as a number": lambda folder: without_checks(folder, rows=[0, "x"]),
    "a huge number": lambda folder: without_checks(folder, rows=[0, 1 << 80]),
    "a missing column": lambda folder: without_checks(folder, keys=None),
    "a width of zero": lambda folder: without_checks(folder, width=0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_files_are_noticed_and_made_again(tmp_path, damage):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b"))
    folder = tmp_path / "v"
    update_vectors(folder, cache)
    DAMAGE[damage](folder)
    with pytest.raises(CacheError, match=r"Delete it: the search file is made again|no such file|folder|No such file"):
        open_vectors(folder)
    if damage == "a folder as the table":
        with pytest.raises(CacheError, match="cannot be written"):
            update_vectors(folder, cache)
        return
    assert_same(update_vectors(folder, cache), cache)
    assert len([*folder.glob("vectors-*")]) == 1


def test_a_changed_vector_is_noticed_by_verify(tmp_path):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b"))
    update_vectors(tmp_path / "v", cache)
    flip(data_file(tmp_path / "v"), HEADER_BYTES + 2 * 4 * 3)
    open_vectors(tmp_path / "v")
    with pytest.raises(CacheError, match="the vectors of 'b' have changed"):
        verify_vectors(tmp_path / "v")


# Processes, disks and crashes


def test_two_updates_at_once_are_refused_and_readers_are_not(tmp_path):
    update_vectors(tmp_path / "v", write_cache(tmp_path / "feats.h5", videos_of("a")))
    newer = write_cache(tmp_path / "feats.h5", videos_of("a", "b"))
    with locked(tmp_path / "v" / ".vectors.lock", ""):
        with pytest.raises(CacheError, match="another process is updating it"):
            update_vectors(tmp_path / "v", newer)
        assert open_vectors(tmp_path / "v").keys == ("a",)
    assert_same(update_vectors(tmp_path / "v", newer), newer)


def test_a_reader_that_meets_a_rewrite_opens_the_new_file(tmp_path, monkeypatch):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b"))
    update_vectors(tmp_path / "v", cache)
    old = read_table(tmp_path / "v")
    other = write_cache(tmp_path / "other.h5", videos_of("a"), fingerprint={"model": "other", "fps": 0.5})
    update_vectors(tmp_path / "v", other)
    tables = iter([old])
    monkeypatch.setattr("costl.pipeline.library.vectors.read_table", lambda folder: next(tables, None) or read_table(folder))
    assert open_vectors(tmp_path / "v").keys == ("a",)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a"))
    (tmp_path / "v").mkdir(mode=0o500)
    with pytest.raises(CacheError, match="cannot be written"):
        update_vectors(tmp_path / "v", cache)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["append", "fsync", "write_table"])
def test_a_disk_that_refuses_is_one_sentence_and_leaves_the_old_state(tmp_path, monkeypatch, call, code):
    old = write_cache(tmp_path / "feats.h5", videos_of("a", "b"))
    update_vectors(tmp_path / "v", old)
    before = {path.name: path.read_bytes() for path in (tmp_path / "v").iterdir()}

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    newer = write_cache(tmp_path / "feats.h5", videos_of("a", "b", "c"))
    with monkeypatch.context() as patch:
        owner, name = {
            "append": (vectors_update._Writer, "append"),
            "fsync": (os, "fsync"),
            "write_table": (vectors_update, "write_table"),
        }[call]
        patch.setattr(owner, name, refuse)
        with pytest.raises(CacheError, match=r"v: cannot be written .*\. What was finished is kept\."):
            update_vectors(tmp_path / "v", newer)
    assert {path.name: path.read_bytes() for path in (tmp_path / "v").iterdir()} == before
    assert_same(update_vectors(tmp_path / "v", newer), newer)


def test_a_new_file_that_cannot_be_finished_is_removed(tmp_path, monkeypatch):
    cache = write_cache(tmp_path / "feats.h5", videos_of("a"))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(vectors_update, "write_table", refuse)
    with pytest.raises(CacheError, match="cannot be written"):
        update_vectors(tmp_path / "v", cache)
    assert not [*(tmp_path / "v").glob("vectors*")]


def test_the_table_is_published_while_a_long_update_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_update, "_PUBLISH_EVERY_S", 0.0)
    cache = write_cache(tmp_path / "feats.h5", videos_of("a", "b", "c"))
    seen = []

    def look(progress) -> None:
        seen.append((progress.done, open_vectors(tmp_path / "v").keys if progress.done else ()))

    update_vectors(tmp_path / "v", cache, progress=look)
    assert seen == [(0, ()), (1, ("a",)), (2, ("a", "b")), (3, ("a", "b", "c"))]


def test_twenty_thousand_videos_open_quickly(tmp_path):
    count = 20_000
    data = "vectors-0123456789abcdef.f16"
    clips = np.ones(count, np.int64)
    keys = tuple(f"videos of 2026/holiday/clip number {number:05d}" for number in range(count))
    checksums = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
    rows = np.arange(count)
    table = VectorsTable("d" * 64, 0.5, 2, data, count, keys, checksums, rows, clips, rows, clips * 2.0)
    write_table(tmp_path, table)
    (tmp_path / data).write_bytes(header(data, 2) + bytes(4 * count))
    spent_s = []
    for _ in range(5):
        started = time.process_time()
        vectors = open_vectors(tmp_path)
        spent_s.append(time.process_time() - started)
    assert len(vectors.keys) == count and min(spent_s) < 0.1

"""A cache is read back as it was written, names every difference in settings, and is refused if it is damaged."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from copy import deepcopy
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_cache import (
    CHANNELS,
    CLIP_COUNTS,
    JOINT_CHANNELS,
    JOINT_SPACE,
    PATCH_GRID,
    WORD_CHANNELS,
    sentence_tokens,
    small_contents,
    video_features,
    write_small_cache,
)

from costl.pipeline.cache import hdf5
from costl.pipeline.cache.index import VideoRow
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.words import stored_words
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError
from costl.pipeline.grid import Grid


@pytest.fixture
def cache(tmp_path) -> Path:
    return write_small_cache(tmp_path / "feats.h5")


def words_file(path: Path) -> Path:
    (only,) = (parts_folder(path) / "words").iterdir()
    return only


def rewrite(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace_text(file: h5py.File, name: str, text: str) -> None:
    del file[name]
    hdf5.put_text(file, name, text)


def change_row(path: Path, **values) -> None:
    def change(file):
        rows = json.loads(bytes(file["rows"][()]))
        rows[1] |= values
        replace_text(file, "rows", json.dumps(rows))

    rewrite(path, change)


# Writing and reading


def test_everything_that_is_stored_is_read_back(cache):
    reader = CacheReader(cache)
    assert reader.video_ids == ["v_a", "v_b", "v_c"]
    assert (reader.fps, reader.patch_grid, reader.settings) == (0.5, PATCH_GRID, {"epochs": 3})
    assert reader.fingerprint == {"model": "tiny", "fps": 0.5}
    assert reader.splits == ["train", "val"]
    assert reader.annotations("train") == '{"qid": 1, "query": "a dog"}\n'
    assert reader.annotations("val") == ""
    for video_id, clips in CLIP_COUNTS.items():
        np.testing.assert_array_equal(reader.tokens(video_id), video_features(video_id)["tokens"])
        np.testing.assert_allclose(reader.joint_vectors(video_id), video_features(video_id)["joint"], atol=1e-3)
        np.testing.assert_array_equal(reader.times_s(video_id), video_features(video_id)["times_s"])
        assert reader.grid(video_id) == Grid(fps=0.5, duration_s=clips * 2.0)
    assert reader.joint == JOINT_SPACE
    assert reader.joint.logit_scale == 100.0


def test_the_tokens_of_every_query_are_read_back(cache):
    reader = CacheReader(cache)
    for query, stored in sentence_tokens().items():
        tokens = reader.words(query)
        np.testing.assert_array_equal(tokens.tokens, stored.tokens)
        np.testing.assert_array_equal(tokens.sentence, stored.sentence)
        assert tokens.truncated == stored.truncated
        assert tokens.texts == stored.texts


def test_the_folder_of_the_videos_is_relative_to_the_cache(tmp_path):
    for stored, expected in (("../dir", tmp_path / "dir"), ("", None)):
        path = tmp_path / "deep" / "feats.h5"
        with CacheWriter(path, small_contents(videos=stored), sentence_tokens()) as writer:
            writer.write_index()
        assert CacheReader(path).videos == expected


def test_a_cache_without_queries_can_be_read(tmp_path):
    with CacheWriter(tmp_path / "feats.h5", small_contents(annotations={}), {}) as writer:
        writer.write_index()
    reader = CacheReader(tmp_path / "feats.h5")
    assert reader.splits == [] and reader.video_ids == []
    with pytest.raises(CacheError, match="'a dog' was not extracted"):
        reader.words("a dog")


def test_the_memory_map_equals_what_h5py_reads(cache):
    mapped = CacheReader(cache).tokens("v_b")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable and mapped.flags.aligned
    with h5py.File(parts_folder(cache) / "v_b.h5") as file:
        dataset = file["tokens"]
        assert dataset.chunks is None and dataset.compression is None
        np.testing.assert_array_equal(mapped, dataset[()])


def test_a_video_is_read_by_its_name_in_annotations(cache):
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        writer.store("caf%C3%A9", name="café", **video_features("v_a"))
        writer.write_index()
    reader = CacheReader(cache)
    assert reader.video_ids == ["café"]
    assert reader.tokens("café").shape == (3, 7, CHANNELS)


def test_a_failed_video_keeps_its_reason(cache):
    reader = CacheReader(cache)
    [row] = [row for row in reader.rows if not row.ok]
    assert (row.id, row.status, row.reason) == ("bad", "failed", "no video stream")
    with pytest.raises(CacheError, match=r"'bad' has no features \(failed: no video stream"):
        reader.tokens("bad")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda reader: reader.tokens("v_x"), "no video 'v_x'"),
        (lambda reader: reader.words("a cat"), "'a cat' was not extracted"),
        (lambda reader: reader.annotations("test"), "no split 'test', only train, val"),
    ],
)
def test_a_missing_video_query_or_split_is_named(cache, read, message):
    with pytest.raises(CacheError, match=message):
        read(CacheReader(cache))


def test_the_same_features_give_the_same_bytes(cache, tmp_path):
    again = tmp_path / "again" / "feats.h5"
    with CacheWriter(again, small_contents(), sentence_tokens()) as writer:
        writer.record_without_features("bad", status="failed", reason="no video stream")
        for video_id in reversed(CLIP_COUNTS):
            writer.store(video_id, **video_features(video_id))
        writer.write_index()
    assert again.read_bytes() == cache.read_bytes()
    for video_id in CLIP_COUNTS:
        part = f"{video_id}.h5"
        assert (parts_folder(again) / part).read_bytes() == (parts_folder(cache) / part).read_bytes()


def test_a_moved_cache_still_works(cache, tmp_path):
    home = tmp_path / "elsewhere"
    home.mkdir()
    shutil.move(parts_folder(cache), home / "feats.h5.parts")
    shutil.move(cache, home / "feats.h5")
    assert CacheReader(home / "feats.h5").tokens("v_a").shape == (3, 7, CHANNELS)


# Words


def test_words_are_written_once_a_run_and_replace_the_old_ones(cache):
    before = words_file(cache)
    with CacheWriter(cache, small_contents(), {"a dog": sentence_tokens()["a dog"]}) as writer:
        writer.write_index()
        written = words_file(cache).stat().st_mtime_ns
        writer.write_index()
    assert words_file(cache) != before and words_file(cache).stat().st_mtime_ns == written
    with pytest.raises(CacheError, match="'日本' was not extracted"):
        CacheReader(cache).words("日本")


def test_a_reader_keeps_its_words_when_the_file_is_replaced(cache):
    reader = CacheReader(cache)
    reader.words("日本")
    with CacheWriter(cache, small_contents(), {}) as writer:
        writer.write_index()
    np.testing.assert_array_equal(reader.words("a dog").tokens, sentence_tokens()["a dog"].tokens)


def test_a_pickled_reader_does_not_contain_its_memory_maps(cache):
    reader = CacheReader(cache)
    size = len(pickle.dumps(reader))
    reader.words("日本"), reader.tokens("v_a")
    assert len(pickle.dumps(reader)) < size + 1000
    assert pickle.loads(pickle.dumps(reader)).words("a dog").tokens.shape == (2, WORD_CHANNELS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ends", np.array([2, 1, 7])),
        ("ends", np.array([2, 6, 8])),
        ("ends", np.array([-1, 6, 7])),
        ("ends", np.array([7])),
        ("tokens", np.zeros((7, WORD_CHANNELS), np.float32)),
        ("truncated", np.zeros(2, np.uint8)),
        ("sentences", np.zeros((4, JOINT_CHANNELS), np.float32)),
        ("tokens", np.full((7, WORD_CHANNELS), np.nan, np.float16)),
    ],
)
def test_inconsistent_words_are_refused_and_encoded_again(cache, name, data):
    def change(file):
        del file[name]
        file[name] = data

    rewrite(words_file(cache), change)
    with pytest.raises(CacheError, match=re.escape(str(words_file(cache)))):
        CacheReader(cache).words("a dog")
    assert stored_words(cache) == {}


def test_a_truncated_file_of_words_is_refused(cache):
    whole = words_file(cache).read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        words_file(cache).write_bytes(whole[:length])
        with pytest.raises(CacheError):
            CacheReader(cache).verify_words()


def test_a_flipped_bit_in_the_words_is_found(cache):
    with h5py.File(words_file(cache)) as file:
        offset = file["tokens"].id.get_offset()
    CacheReader(cache).verify_words()
    data = bytearray(words_file(cache).read_bytes())
    data[offset + 3] ^= 1
    words_file(cache).write_bytes(data)
    with pytest.raises(CacheError, match="content has changed"):
        CacheReader(cache).verify_words()


@pytest.mark.parametrize("name", ["../v_a.h5", "v_a.h5", "/etc/passwd", ""])
def test_words_outside_of_their_folder_are_refused(cache, name):
    rewrite(cache, lambda file: replace_text(file, "words", name))
    with pytest.raises(CacheError, match="foreign or damaged"):
        CacheReader(cache)


# Resuming


def test_a_part_is_reused_unless_its_video_was_replaced(cache):
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        assert writer.reuse_if_unchanged("v_a", "hash of v_a").clips == 3
        assert writer.reuse_if_unchanged("v_b", "hash of another file") is None
        assert writer.reuse_if_unchanged("v_new", "hash") is None
        writer.write_index()
    assert CacheReader(cache).video_ids == ["v_a"]


def test_a_reused_row_equals_the_stored_row(cache):
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        reused = writer.reuse_if_unchanged("v_b", "hash of v_b")
    assert reused == next(row for row in CacheReader(cache).rows if row.id == "v_b")


def test_a_damaged_part_is_made_again(cache):
    (parts_folder(cache) / "v_a.h5").write_bytes(b"not a part")
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        assert writer.reuse_if_unchanged("v_a", "hash of v_a") is None


@pytest.mark.promise(4)
def test_other_settings_are_refused_by_field(cache):
    changed = small_contents(fingerprint={"model": "tiny", "fps": 1.0}, fps=1.0)
    before = cache.read_bytes()
    with (
        pytest.raises(CacheError, match=r"other settings \(fps: cache has 0.5, asked for 1.0\)"),
        CacheWriter(cache, changed, {}),
    ):
        pass
    assert cache.read_bytes() == before


def test_a_part_of_other_settings_is_neither_reused_nor_read(cache, tmp_path):
    other = tmp_path / "other" / "feats.h5"
    with CacheWriter(other, small_contents(fingerprint={"model": "other"}), sentence_tokens()) as writer:
        writer.store("v_a", **video_features("v_a"))
    shutil.copy(parts_folder(other) / "v_a.h5", parts_folder(cache) / "v_a.h5")
    with pytest.raises(CacheError, match="other settings than its index"):
        CacheReader(cache).tokens("v_a")
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        assert writer.reuse_if_unchanged("v_a", "hash of v_a") is None


@pytest.mark.promise(5)
def test_a_second_writer_is_refused(cache):
    with (
        CacheWriter(cache, small_contents(), sentence_tokens()),
        pytest.raises(CacheError, match="another costl extract is writing"),
        CacheWriter(cache, small_contents(), sentence_tokens()),
    ):
        pass
    with CacheWriter(cache, small_contents(), sentence_tokens()):
        pass


KILLED = """
import os, signal
from pathlib import Path
import h5py
import numpy as np
from costl.pipeline.cache.writer import CacheWriter
from small_cache import CLIP_COUNTS, sentence_tokens, small_contents, video_features

boundary, count = int({boundary}), 0


def step(*_):
    global count
    count += 1
    if count == boundary:
        os.kill(os.getpid(), signal.SIGKILL)


def stepping(function):
    def call(*args, **kwargs):
        step()
        result = function(*args, **kwargs)
        step()
        return result
    return call


os.replace, os.fsync = stepping(os.replace), stepping(os.fsync)
h5py.Group.create_dataset = stepping(h5py.Group.create_dataset)
h5py.File.close = stepping(h5py.File.close)
with CacheWriter(Path({path!r}), small_contents(), sentence_tokens()) as writer:
    writer.write_index()
    for video_id in CLIP_COUNTS:
        writer.store(video_id, **video_features(video_id))
        print(video_id, flush=True)
"""


def run_killed(path: Path, boundary: int) -> subprocess.CompletedProcess:
    script = textwrap.dedent(KILLED).format(boundary=boundary, path=str(path))
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "helpers")])}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("boundary", [3, 8, 14, 20, 25, 29, 33, 37, 41, 44])
@pytest.mark.promise(1)
def test_a_kill_at_a_write_boundary_loses_no_reported_video(tmp_path, boundary):
    path = tmp_path / "feats.h5"
    run = run_killed(path, boundary)
    assert run.returncode == -signal.SIGKILL, run.stderr
    reported = run.stdout.split()
    if path.exists():
        CacheReader(path)
    with CacheWriter(path, small_contents(), sentence_tokens()) as writer:
        assert not list(tmp_path.rglob(".*.tmp"))
        for video_id in reported:
            assert writer.reuse_if_unchanged(video_id, f"hash of {video_id}") is not None
        for video_id in CLIP_COUNTS.keys() - set(reported):
            writer.store(video_id, **video_features(video_id))
        writer.write_index()
    reader = CacheReader(path)
    for video_id in CLIP_COUNTS:
        reader.verify(video_id)
        np.testing.assert_array_equal(reader.tokens(video_id), video_features(video_id)["tokens"])
        np.testing.assert_allclose(reader.joint_vectors(video_id), video_features(video_id)["joint"], atol=1e-3)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_reported_and_leaves_no_temporary_file(cache, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = cache.read_bytes()
    with (
        pytest.raises(CacheError, match="No space left"),
        CacheWriter(cache, small_contents(), sentence_tokens()) as writer,
    ):
        monkeypatch.setattr(os, call, full)
        writer.store("v_a", **video_features("v_a"))
    monkeypatch.undo()
    assert cache.read_bytes() == before
    assert not list(cache.parent.rglob(".*.tmp"))
    CacheReader(cache).verify("v_a")


# Refusals


@pytest.mark.promise(10)
def test_a_flipped_bit_is_found(cache, report_figure):
    part, rng = parts_folder(cache) / "v_b.h5", np.random.default_rng(0)
    messages = {"tokens": "content has changed", "times_s": "content has changed|times that do not rise"}
    with h5py.File(part) as file:
        extents = {name: (file[name].id.get_offset(), file[name].id.get_storage_size()) for name in messages}
    whole = part.read_bytes()
    reader = CacheReader(cache)
    positions = [(name, start + position) for name, (start, size) in extents.items() for position in range(size)]
    for name, position in positions:
        part.write_bytes(flipped(whole, position, rng))
        with pytest.raises(CacheError, match=messages[name]):
            reader.verify("v_b")
    reader.verify("v_a")
    report_figure(f"a bit flipped in each of the {len(positions)} bytes of a part's numbers: each found")


@pytest.mark.promise(10)
def test_a_flipped_bit_in_the_rest_of_a_part_changes_no_value(cache, report_figure):
    part, rng, truth = parts_folder(cache) / "v_b.h5", np.random.default_rng(0), video_features("v_b")
    whole = part.read_bytes()
    opened = CacheReader(cache)
    found = 0
    unread = 0
    for position in range(0, len(whole), 7):
        part.write_bytes(flipped(whole, position, rng))
        reader = deepcopy(opened)  # which has read nothing of the part yet
        try:
            reader.verify("v_b")
        except CacheError:
            found += 1
            continue
        assert np.array_equal(reader.tokens("v_b"), truth["tokens"]), position
        assert np.array_equal(reader.times_s("v_b"), truth["times_s"]), position
        unread += 1
    assert found and unread
    report_figure(f"a bit flipped in every seventh byte of a part: {found} found, {unread} in bytes that are not read")


def flipped(whole: bytes, position: int, rng: np.random.Generator) -> bytes:
    return whole[:position] + bytes([whole[position] ^ 1 << int(rng.integers(8))]) + whole[position + 1 :]


@pytest.mark.parametrize(
    "content", [b"", b"a text file\n", b"\x89HDF\r\n\x1a\n" + b"\0" * 600], ids=["empty", "text", "torso"]
)
def test_a_file_that_is_not_a_cache_is_refused(tmp_path, content):
    path = tmp_path / "feats.h5"
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"feats\.h5"):
        CacheReader(path)


def test_a_missing_cache_is_named(tmp_path):
    with pytest.raises(CacheError, match="no such file"):
        CacheReader(tmp_path / "feats.h5")


@pytest.mark.promise(9)
def test_a_truncated_index_is_refused(cache):
    whole = cache.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        cache.write_bytes(whole[:length])
        with pytest.raises(CacheError):
            CacheReader(cache).words("a dog")


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        file["tokens"] = np.zeros(3)
    with pytest.raises(CacheError, match="not made by costl extract"):
        CacheReader(tmp_path / "feats.h5")


@pytest.mark.promise(4)
def test_another_format_is_refused_by_number(cache):
    rewrite(cache, lambda file: file.attrs.__setitem__("format", 999))
    with pytest.raises(CacheError, match="cache format 999, this program reads formats up to 2"):
        CacheReader(cache)


@pytest.mark.parametrize("value", ["1", 1.0, np.arange(3)], ids=["text", "float", "array"])
def test_a_format_that_is_not_an_integer_is_refused(cache, value):
    rewrite(cache, lambda file: file.attrs.__setitem__("format", value))
    with pytest.raises(CacheError, match="'format' is not one int"):
        CacheReader(cache)


@pytest.mark.parametrize(
    "link",
    [h5py.ExternalLink("other.h5", "/rows"), h5py.SoftLink("/settings")],
    ids=["external", "soft"],
)
@pytest.mark.parametrize("name", ["rows", "joint", "words", "annotations/train"])
@pytest.mark.promise(9)
def test_a_link_is_not_followed(cache, link, name):
    shutil.copy(cache, cache.with_name("other.h5"))

    def change(file):
        del file[name]
        file[name] = link

    rewrite(cache, change)
    with pytest.raises(CacheError, match="found a link elsewhere"):
        CacheReader(cache).words("a dog")


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((3, 7, CHANNELS), np.float32),
        np.zeros((3, 7, CHANNELS), ">f2"),
        np.zeros((3, 7, CHANNELS + 1), np.float16),
        np.zeros((2, 7, CHANNELS), np.float16),
        np.zeros((3, 7), np.float16),
        np.zeros((3, 7, CHANNELS), [("x", "<f2")]),
    ],
    ids=["float32", "big-endian", "width", "clips", "axes", "compound"],
)
def test_tokens_of_another_type_or_shape_are_refused(cache, data):
    def change(file):
        del file["tokens"]
        file["tokens"] = data

    rewrite(parts_folder(cache) / "v_a.h5", change)
    with pytest.raises(CacheError, match="tokens"):
        CacheReader(cache).tokens("v_a")


def external_storage(file):
    file.create_dataset(
        "tokens", shape=(3, 7, CHANNELS), dtype="<f2", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file):
    layout = h5py.VirtualLayout(shape=(3, 7, CHANNELS), dtype="<f2")
    layout[:] = h5py.VirtualSource("other.h5", "tokens", shape=(3, 7, CHANNELS))
    file.create_virtual_dataset("tokens", layout)


def compressed(file):
    file.create_dataset("tokens", data=np.zeros((3, 7, CHANNELS), np.float16), compression="gzip")


def never_written(file):
    file.create_dataset("tokens", shape=(3, 7, CHANNELS), dtype="<f2")


@pytest.mark.parametrize("make", [external_storage, virtual, compressed, never_written])
def test_tokens_that_are_not_plain_bytes_in_the_file_are_refused(cache, make):
    def change(file):
        del file["tokens"]
        make(file)

    rewrite(parts_folder(cache) / "v_a.h5", change)
    with pytest.raises(CacheError, match="tokens"):
        CacheReader(cache).tokens("v_a")


@pytest.mark.promise(9)
def test_a_shape_larger_than_its_file_is_refused_before_it_is_read(cache):
    def change(file):
        del file["sentences"]
        file.create_dataset("sentences", shape=(1 << 40, 4), dtype="<f4")

    rewrite(words_file(cache), change)
    with pytest.raises(CacheError, match="sentences claims"):
        CacheReader(cache).words("a dog")


@pytest.mark.parametrize("times", [[1.0, 3.0], [1.0, 0.5, 2.0], [1.0, np.nan, 2.0]], ids=["few", "falling", "nan"])
def test_impossible_times_are_refused(cache, times):
    def change(file):
        del file["times_s"]
        file["times_s"] = np.array(times)

    rewrite(parts_folder(cache) / "v_a.h5", change)
    with pytest.raises(CacheError, match="times that do not rise"):
        CacheReader(cache).times_s("v_a")


@pytest.mark.parametrize(
    "values",
    [
        {"id": "../../etc/passwd", "part": "../../etc/passwd.h5"},
        {"id": "..", "part": "...h5"},
        {"id": "a/b", "part": "a/b.h5"},
        {"id": "nul\0byte", "part": "nul\0byte.h5"},
        {"id": ""},
        {"part": "../v_b.h5"},
        {"part": "/etc/passwd"},
        {"clips": -1},
        {"clips": "5"},
        {"clips": 4},
        {"duration_s": float("nan")},
        {"duration_s": 1e308},
        {"unknown": 1},
    ],
    ids=str,
)
def test_an_unsafe_or_impossible_row_is_refused(cache, values):
    change_row(cache, **values)
    with pytest.raises(CacheError):
        CacheReader(cache)


def test_a_part_that_is_a_link_is_refused(cache, tmp_path):
    part = parts_folder(cache) / "v_a.h5"
    part.rename(tmp_path / "elsewhere.h5")
    part.symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(CacheError, match="a link, expected a file"):
        CacheReader(cache).tokens("v_a")


def test_a_missing_part_is_named(cache):
    (parts_folder(cache) / "v_a.h5").unlink()
    with pytest.raises(CacheError, match=r"v_a\.h5: no such file"):
        CacheReader(cache).tokens("v_a")


@pytest.mark.parametrize("text", ["{", "[]" * 3, "null", "[" * 100_000, '"text"'], ids=lambda text: text[:6])
def test_damaged_json_is_refused(cache, text):
    for name in ("rows", "fingerprint", "features", "settings"):
        rewrite(cache, lambda file, name=name: replace_text(file, name, text))
        with pytest.raises(CacheError):
            CacheReader(cache)


def test_a_path_with_a_null_character_is_refused():
    for changes in ({"videos": "a\0b"}, {"source": {"weights": "./\0"}}):
        with pytest.raises(CacheError, match="a path with a null character"):
            small_contents(**changes)


def test_a_row_cannot_be_made_with_an_unsafe_id():
    with pytest.raises(CacheError, match="not a safe video id"):
        VideoRow(id="../x", status="failed", name="x")

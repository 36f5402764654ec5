"""A packed file is unpacked byte for byte, and is refused if it is damaged or malicious."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_cache import JOINT_CHANNELS, sentence_tokens, small_contents, video_features, write_small_cache

from costl.commands import main
from costl.pipeline.cache import pack as packing_module
from costl.pipeline.cache.pack import pack, unpack
from costl.pipeline.cache.pack_table import ENDS, TABLE, ByteRange, split_into_ranges
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError, UsageError
from costl.pipeline.videos import safe_id


@pytest.fixture
def cache(tmp_path) -> Path:
    return write_small_cache(tmp_path / "feats.h5")


@pytest.fixture
def packed(cache) -> Path:
    return pack(cache, out=cache.with_name("p.h5"))


def files_of(cache: Path) -> dict[str, bytes]:
    folder = parts_folder(cache)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.h5")}


def change_line(path: Path, number: int, change) -> None:
    """Rewrites one line of the table of a packed file."""
    with h5py.File(path, "r+") as file:
        lines = bytes(file[TABLE][()]).splitlines()
        about = json.loads(lines[number])
        change(about)
        lines[number] = json.dumps(about).encode()
        lines = [line + b"\n" for line in lines]
        del file[TABLE], file[ENDS]
        file[TABLE], file[ENDS] = np.frombuffer(b"".join(lines), np.uint8), np.cumsum([len(line) for line in lines])


# Packing and unpacking


def test_pack_then_unpack_gives_back_every_file_byte_for_byte(cache, packed, tmp_path):
    shutil.move(cache, tmp_path / "first.h5")
    before = files_of(cache)
    shutil.rmtree(parts_folder(cache))
    unpack(packed, out=cache)
    assert files_of(cache) == before and len(before) == 4
    assert cache.read_bytes() == (tmp_path / "first.h5").read_bytes()


def test_parts_with_other_arrays_and_attributes_are_packed(cache, tmp_path):
    part = parts_folder(cache) / "v_b.h5"
    with h5py.File(part, "r+") as file:
        file["scales"] = np.arange(5, dtype=np.float32)
        file["more"] = np.arange(6000, dtype=np.int8).reshape(3, 2000)
        file["nothing"] = np.zeros((0, 4), np.uint8)
        file["note"] = np.bytes_("as it is")
        file.attrs["layers"] = 2
        file.attrs["list"] = np.arange(3)
    packed = pack(cache, out=tmp_path / "p.h5")
    arrays = CacheReader(packed).array_locations("v_b")
    assert sorted(arrays) == ["joint", "more", "note", "nothing", "scales", "times_s", "tokens"]
    for name, where in CacheReader(cache).array_locations("v_b").items():
        np.testing.assert_array_equal(arrays[name].array(), where.array())
    unpack(packed, out=tmp_path / "out" / "feats.h5")
    assert files_of(tmp_path / "out" / "feats.h5") == files_of(cache)


def test_a_packed_file_reads_like_its_parts(cache, packed):
    shutil.move(packed, packed.with_name("moved.h5"))
    parts_reader = CacheReader(cache)
    packed_reader = CacheReader(packed.with_name("moved.h5"))
    assert packed_reader.rows == parts_reader.rows
    assert packed_reader.digest == parts_reader.digest
    assert packed_reader.contents.annotations == parts_reader.contents.annotations
    for name in parts_reader.video_ids:
        np.testing.assert_array_equal(parts_reader.tokens(name), packed_reader.tokens(name))
        np.testing.assert_array_equal(parts_reader.times_s(name), packed_reader.times_s(name))
    for query in sentence_tokens():
        np.testing.assert_array_equal(parts_reader.words(query).tokens, packed_reader.words(query).tokens)
    assert verify(packed_reader.path).damaged == () and verify(packed_reader.path, quick=True).checked == 4
    assert pickle.loads(pickle.dumps(packed_reader)).tokens("v_a").shape == (3, 7, 8)


def test_large_arrays_are_contiguous_and_begin_at_a_page(cache, tmp_path):
    tokens = np.random.default_rng(0).normal(size=(40, 7, 8)).astype(np.float16)
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        joint = np.zeros((40, JOINT_CHANNELS), np.float16)
        facts = {"joint": joint, "duration_s": 80.0, "content_hash": "x", "decoder": "d"}
        writer.store("long", tokens=tokens, times_s=np.arange(40.0), **facts)
        writer.write_index()
    packed = pack(cache, out=tmp_path / "p.h5")
    mapped = CacheReader(packed).tokens("long")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable and mapped.flags.aligned
    with h5py.File(packed) as file:
        dataset = file["packed/parts/long/tokens"]
        assert dataset.chunks is None and dataset.id.get_offset() % 4096 == 0
        np.testing.assert_array_equal(dataset[()], tokens)
        assert bytes(file["packed/parts/long"].attrs["decoder"]) == b"d"


def test_the_same_cache_gives_the_same_bytes(cache, packed):
    assert pack(cache, out=cache.with_name("again.h5")).read_bytes() == packed.read_bytes()


def test_evaluation_of_a_packed_cache_gives_the_same_numbers(world, tmp_path):
    from costl.evaluate import evaluate
    from costl.train import train

    run = train(world.cache, overrides=["train.epochs=1"], out=tmp_path / "run", device="cpu").run
    packed = pack(world.cache, out=tmp_path / "p.h5")
    parts = evaluate(run=run, split="test", device="cpu", out=tmp_path / "a")
    whole = evaluate(run=run, split="test", device="cpu", out=tmp_path / "b", cache=packed)
    assert whole.metrics == parts.metrics and parts.metrics
    assert (tmp_path / "b/predictions.jsonl").read_bytes() == (tmp_path / "a/predictions.jsonl").read_bytes()


def test_a_packed_file_in_another_folder_finds_videos_and_weights(world, tmp_path):
    (tmp_path / "deep").mkdir()
    packed = pack(world.cache, out=tmp_path / "deep" / "p.h5")
    here, there = CacheReader(world.cache), CacheReader(packed)
    assert there.videos == here.videos == world.videos.resolve() and there.source == here.source


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(min_size=1, max_size=40))
@example(name="../\u732b/a b\0\n." + "x" * 30)
def test_a_video_of_any_name_is_packed_and_unpacked(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names")
    name = name.encode(errors="replace").decode()
    with CacheWriter(folder / "f.h5", small_contents(), {}) as writer:
        writer.store(safe_id(name), name=name, **video_features("v_a"))
        writer.store("words", **video_features("v_b"))
        writer.write_index()
    pack(folder / "f.h5", out=folder / "p.h5")
    np.testing.assert_array_equal(CacheReader(folder / "p.h5").tokens(name), video_features("v_a")["tokens"])
    unpack(folder / "p.h5", out=folder / "o" / "f.h5")
    assert files_of(folder / "o" / "f.h5") == files_of(folder / "f.h5")


@given(data=st.data())
def test_ranges_cover_a_file_once_and_in_order(data):
    size = data.draw(st.integers(1, 200))
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=8)))
    arrays = [ByteRange(a, 1000 + a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    whole, shell = split_into_ranges(size, arrays, 5000)
    assert [i for part in whole for i in range(part.file_offset, part.file_offset + part.length)] == list(range(size))
    assert set(whole) == set(shell) | {part for part in arrays if part.length}
    lengths = [part.length for part in shell]
    assert [part.packed_offset for part in shell] == [5000 + sum(lengths[:i]) for i in range(len(shell))]


def test_memory_does_not_grow_with_the_size_of_a_part(tmp_path):
    clips, limit = 400_000, 16e6
    with CacheWriter(tmp_path / "f.h5", small_contents(), {}) as writer:
        joint = np.zeros((clips, JOINT_CHANNELS), np.float16)
        about = {"joint": joint, "duration_s": 2.0 * clips, "content_hash": "x", "decoder": "d"}
        writer.store("v", tokens=np.ones((clips, 7, 8), np.float16), times_s=np.arange(clips) * 1.0, **about)
        writer.write_index()
    tracemalloc.start()
    try:
        pack(tmp_path / "f.h5", out=tmp_path / "p.h5")
        packing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        unpack(tmp_path / "p.h5", out=tmp_path / "o" / "f.h5")
        assert packing < limit and tracemalloc.get_traced_memory()[1] < limit < (tmp_path / "p.h5").stat().st_size / 2
    finally:
        tracemalloc.stop()


# Killed, full, damaged


KILLED = """
import os, signal
from pathlib import Path
import h5py
from costl.pipeline.cache import pack as module
boundary, count = int({boundary}), 0

def stepping(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == boundary:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

os.replace, os.fsync = stepping(os.replace), stepping(os.fsync)
h5py.File.close, module.read_blocks = stepping(h5py.File.close), stepping(module.read_blocks)
module.hdf5.reserve = stepping(module.hdf5.reserve)
module.{what}(Path({path!r}), out=Path({out!r}))
"""


def run_killed(what: str, path: Path, out: Path, boundary: int) -> int:
    script = textwrap.dedent(KILLED).format(what=what, boundary=boundary, path=str(path), out=str(out))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False).returncode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("boundary", [1, 9, 20, 30, 36, 40, 44, 46, 48, 49])
def test_a_kill_while_packing_publishes_no_half_written_file(cache, packed, tmp_path, boundary):
    out = tmp_path / "out" / "p.h5"
    code = run_killed("pack", cache, out, boundary)
    assert code == -signal.SIGKILL
    if out.exists():
        assert out.read_bytes()[4096:] and verify(out).damaged == ()
    else:
        for stray in out.parent.glob(".*.tmp"):
            os.utime(stray, (0, 0))
        pack(cache, out=out)
    assert [file.name for file in out.parent.iterdir()] == ["p.h5"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("boundary", [5, 14, 20, 26, 32, 37, 39])
def test_a_killed_unpacking_is_completed_by_the_same_call(cache, packed, tmp_path, boundary):
    out = tmp_path / "out" / "feats.h5"
    assert run_killed("unpack", packed, out, boundary) == -signal.SIGKILL
    for name, content in (files_of(out) if parts_folder(out).exists() else {}).items():
        assert content == files_of(cache)[name]
    if not out.exists():
        unpack(packed, out=out)
    assert files_of(out) == files_of(cache) and verify(out).damaged == ()


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_reported_and_nothing_is_left(cache, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(CacheError, match="No space left"):
        pack(cache, out=cache.parent / "out" / "p.h5")
    assert list((cache.parent / "out").iterdir()) == []


@pytest.mark.parametrize("what", [pack, unpack])
def test_a_disk_without_room_is_refused_before_writing(cache, packed, tmp_path, monkeypatch, what):
    monkeypatch.setattr(packing_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CacheError, match=r"needs 0\.\d\d GB, .* has 0\.00 GB free"):
        what({pack: cache, unpack: packed}[what], out=tmp_path / "new" / "x.h5")
    assert not (tmp_path / "new").exists()


def test_a_damaged_part_is_named(cache, tmp_path):
    part = parts_folder(cache) / "v_b.h5"
    content = bytearray(part.read_bytes())
    content[CacheReader(cache).array_locations("v_b")["tokens"].offset] ^= 1
    part.write_bytes(content)
    with pytest.raises(CacheError, match=r"damaged: v_b\. Delete those files and run costl extract again"):
        pack(cache, out=tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists()


@pytest.mark.parametrize("where", ["tokens", "times_s", "shell", "words"])
@pytest.mark.promise(10)
def test_a_flipped_bit_in_a_packed_file_is_found_and_not_unpacked(packed, tmp_path, where):
    name = {"words": "packed/words/sentences", "shell": "packed/shells/v_b"}.get(where, f"packed/parts/v_b/{where}")
    with h5py.File(packed) as file:
        offset = file[name].id.get_offset()
    content = bytearray(packed.read_bytes())
    content[offset] ^= 1
    packed.write_bytes(content)
    assert [damage.name for damage in verify(packed).damaged] == ["(words)" if where == "words" else "v_b"]
    with pytest.raises(CacheError, match=r"has changed since|times that do not rise"):
        unpack(packed, out=tmp_path / "out" / "feats.h5")
    assert not (tmp_path / "out" / "feats.h5").exists()


def test_damaged_queries_of_a_packed_file_are_refused(packed):
    content = packed.read_bytes()
    assert content.count(b'["a dog"') == 1
    packed.write_bytes(content.replace(b'["a dog"', b'{"a dog"'))
    with pytest.raises(CacheError, match=r"p\.h5: damaged \(Expecting ':' delimiter"):
        CacheReader(packed).word_table()


def test_a_packed_file_can_be_read_through_a_link(packed, tmp_path):
    (tmp_path / "link.h5").symlink_to(packed)
    assert verify(tmp_path / "link.h5", quick=True).damaged == () == verify(tmp_path / "link.h5").damaged


def test_a_truncated_packed_file_is_refused(packed):
    whole = packed.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        packed.write_bytes(whole[:length])
        with pytest.raises(CacheError):
            reader = CacheReader(packed)
            for name in reader.video_ids:
                reader.verify(name)
            reader.verify_words()


# Refusals


def test_extraction_into_a_packed_file_is_refused(packed):
    before = packed.read_bytes()
    with (
        pytest.raises(CacheError, match="Unpack it first: costl cache unpack"),
        CacheWriter(packed, small_contents(), {}),
    ):
        pass
    assert packed.read_bytes() == before and not parts_folder(packed).exists()


def test_existing_files_are_never_overwritten(cache, packed, tmp_path):
    for what, path in ((pack, cache), (unpack, packed)):
        with pytest.raises(UsageError, match="already exists"):
            what(path, out=cache)
    with pytest.raises(UsageError, match="is one packed file already"):
        pack(packed, out=tmp_path / "q.h5")
    with pytest.raises(UsageError, match="is not packed"):
        unpack(cache, out=tmp_path / "q.h5")


def test_a_part_of_another_cache_is_not_overwritten(packed, tmp_path):
    out = tmp_path / "out" / "feats.h5"
    with CacheWriter(out, small_contents(), {}) as writer:
        writer.store("v_b", **video_features("v_a"))
    with pytest.raises(UsageError, match=r"v_b\.h5: is another file than the packed one"):
        unpack(packed, out=out)


@pytest.mark.parametrize("what", [pack, unpack])
def test_an_output_folder_that_cannot_be_made_is_refused(cache, packed, tmp_path, what):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot be written"):
        what({pack: cache, unpack: packed}[what], out=tmp_path / "file" / "deep" / "x.h5")


def test_unpacking_is_refused_while_another_process_writes(packed, tmp_path):
    out = tmp_path / "out" / "feats.h5"
    with CacheWriter(out, small_contents(), {}), pytest.raises(CacheError, match="another costl extract is writing"):
        unpack(packed, out=out)


def climb(about):
    about["name"] = "../../v_a.h5"


def outside(about):
    about["arrays"]["tokens"][2] = 1 << 50


def negative(about):
    about["arrays"]["tokens"][2] = -4096


def overlapping(about):
    about["arrays"]["times_s"][2] = about["arrays"]["tokens"][2]


def nested(about):
    about["arrays"] = {"tokens": [[[]]]}


def none(about):
    about.clear()


HOSTILE = [climb, outside, negative, overlapping, nested, none]


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_a_forged_table_line_is_refused(packed, tmp_path, change):
    change_line(packed, 0, change)
    assert [damage.name for damage in verify(packed, quick=True).damaged] == ["v_a"]
    inside = {file for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(CacheError, match=r"its table is damaged at 'v_a\.h5'"):
        unpack(packed, out=tmp_path / "out" / "deep" / "feats.h5")
    after = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert all((tmp_path / "out" / "deep") in file.parents for file in after - inside)


def test_files_that_share_the_same_bytes_are_not_unpacked(tmp_path):
    with CacheWriter(tmp_path / "f.h5", small_contents(), {}) as writer:
        for i in range(40):
            clips = 1 if i else 1000
            joint = np.zeros((clips, JOINT_CHANNELS), np.float16)
            facts = {"joint": joint, "duration_s": clips * 2.0, "content_hash": "x", "decoder": "d"}
            tokens = np.zeros((clips, 7, 8), np.float16)
            writer.store(f"v{i:02d}", tokens=tokens, times_s=np.arange(clips) * 2.0, **facts)
        writer.write_index()
    packed = pack(tmp_path / "f.h5", out=tmp_path / "p.h5")
    with h5py.File(packed, "r+") as file:
        first = json.loads(bytes(file[TABLE][()]).splitlines()[0])
        for i in range(1, 40):
            for group in (file["packed/parts"], file["packed/shells"]):
                del group[f"v{i:02d}"]
                group[f"v{i:02d}"] = group["v00"]
    for i in range(1, 40):
        change_line(packed, i, lambda about: about.update(arrays=first["arrays"]))
    with pytest.raises(CacheError, match="bytes that claim to hold"):
        unpack(packed, out=tmp_path / "out" / "feats.h5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/packed"), h5py.SoftLink("/joint")])
@pytest.mark.parametrize("name", ["packed", TABLE, ENDS])
def test_a_link_instead_of_the_table_is_not_followed(packed, link, name):
    shutil.copy(packed, packed.with_name("other.h5"))
    with h5py.File(packed, "r+") as file:
        del file[name]
        file[name] = link
    with pytest.raises(CacheError, match="found a link elsewhere"):
        CacheReader(packed)


def test_a_table_of_another_number_of_files_is_refused(packed):
    with h5py.File(packed, "r+") as file:
        ends = file[ENDS][()]
        del file[ENDS]
        file[ENDS] = ends[:-1]
    with pytest.raises(CacheError, match="a table of 3 files that does not fit 4"):
        CacheReader(packed)


def test_a_difference_between_table_and_groups_is_found(packed):
    with h5py.File(packed, "r+") as file:
        file["packed/parts/v_a"].move("tokens", "other")
    assert ["its table is damaged" in damage.problem for damage in verify(packed).damaged] == [True]


def cycle(file):
    file["round"] = file["/"]


def twice(file):
    file["again"] = file["tokens"]


def elsewhere(file):
    file["more"] = h5py.ExternalLink("other.h5", "/tokens")


def objects_inside(file):
    file.create_dataset("texts", data=["a", "b"], dtype=h5py.string_dtype())


@pytest.mark.parametrize("change", [cycle, twice, elsewhere, objects_inside], ids=lambda change: change.__name__)
def test_a_malicious_part_is_not_packed(cache, tmp_path, change):
    with h5py.File(parts_folder(cache) / "v_a.h5", "r+") as file:
        change(file)
    with pytest.raises(CacheError, match=r"v_a\.h5"):
        pack(cache, out=tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists()


def test_the_commands_as_typed(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def costl(line: str):
        return CliRunner().invoke(main, line.split())

    result = costl("cache pack feats.h5 --out p.h5")
    assert (result.exit_code, result.stdout) == (0, "p.h5\n")
    assert costl("cache unpack p.h5 --out out/feats.h5").stdout == "out/feats.h5\n"
    assert costl("cache verify p.h5").exit_code == 0
    assert "3 of 4 videos have features" in costl("cache status p.h5").stdout
    refused = costl("cache pack feats.h5 --out p.h5")
    assert refused.exit_code == 2 and "already exists" in refused.stderr

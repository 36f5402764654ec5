"""Files that a cache no longer needs are listed, and deleted only on request; other files are never deleted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner
from small_cache import sentence_tokens, small_contents, video_features

from costl.commands import main
from costl.pipeline.cache.gc import collect_garbage
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError


@pytest.fixture
def cache(tmp_path) -> Path:
    """Three videos, of which the first and last have left the folder since."""
    path = tmp_path / "feats.h5"
    with CacheWriter(path, small_contents(), sentence_tokens()) as writer:
        for video_id in ("v_a", "v_b", "v_c"):
            writer.store(video_id, **video_features(video_id))
            os.utime(parts_folder(path) / f"{video_id}.h5", (1e9, 1e9))
        writer.write_index()
    with CacheWriter(path, small_contents(), sentence_tokens()) as writer:
        writer.reuse_if_unchanged("v_b", "hash of v_b")
        writer.write_index()
    return path


def tree(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def names(cache: Path) -> list[str]:
    return [path.relative_to(cache.parent).as_posix() for path in collect_garbage(cache).files]


def test_parts_of_removed_videos_are_listed_and_deleted_on_request(cache):
    before, sizes = tree(cache.parent), sum((parts_folder(cache) / f"{v}.h5").stat().st_size for v in ("v_a", "v_c"))
    leftovers = collect_garbage(cache)
    assert names(cache) == ["feats.h5.parts/v_a.h5", "feats.h5.parts/v_c.h5"]
    assert (leftovers.size_bytes, leftovers.deleted, tree(cache.parent)) == (sizes, False, before)
    assert leftovers.lines()[-1] == f"2 files to delete, {sizes / 1e6:.1f} MB."
    assert collect_garbage(cache, delete=True).deleted
    assert before - tree(cache.parent) == {"feats.h5.parts/v_a.h5", "feats.h5.parts/v_c.h5"}
    assert verify(cache).damaged == () and collect_garbage(cache).files == {}


def test_temporary_files_and_old_words_are_deleted(cache):
    folder = parts_folder(cache)
    (folder / "words" / f"{'a' * 64}.h5").write_bytes(CacheReader(cache).words_path.read_bytes())
    temporary_files = [
        folder / ".v_b.h5.12.tmp",
        folder / "words" / f".{'b' * 64}.h5.7-0fe1.tmp",
        cache.parent / ".feats.h5.99.tmp",
    ]
    for temporary in temporary_files:
        temporary.write_bytes(b"half")
    deleted = collect_garbage(cache, delete=True).files.keys()
    assert deleted == {*temporary_files, folder / "words" / f"{'a' * 64}.h5", folder / "v_a.h5", folder / "v_c.h5"}
    assert tree(folder) == {".lock", "v_b.h5", f"words/{CacheReader(cache).words_path.name}"}


def by_someone_else(part: Path) -> None:
    with h5py.File(part, "w") as file:
        file["mine"] = 1


def of_another_name(part: Path) -> None:
    shutil.copy(part.with_name("v_b.h5"), part)


def text(part: Path) -> None:
    part.write_text("notes")


@pytest.mark.parametrize("make", [by_someone_else, of_another_name, text], ids=lambda make: make.__name__)
def test_files_that_may_not_be_ours_stay(cache, make):
    foreign = parts_folder(cache) / "v_a.h5"
    foreign.unlink()
    make(foreign)
    os.utime(foreign, (1e9, 1e9))
    leftovers = collect_garbage(cache, delete=True)
    assert foreign not in leftovers.files and foreign.exists() and not (foreign.with_name("v_c.h5")).exists()


def test_other_names_links_and_other_caches_are_ignored(cache, tmp_path):
    folder = parts_folder(cache)
    others = [folder / "notes.txt", folder / ".notes.tmp", cache.parent / ".other.h5.12.tmp", cache.parent / "v_z.h5"]
    for other in others:
        other.write_bytes(b"mine")
    (folder / "link.h5").symlink_to(cache.parent / "v_z.h5")
    shutil.copytree(folder, cache.parent / "other.h5.parts", symlinks=True)
    before = tree(cache.parent)
    collect_garbage(cache, delete=True)
    assert before - tree(cache.parent) == {"feats.h5.parts/v_a.h5", "feats.h5.parts/v_c.h5"}


def test_a_part_that_is_newer_than_the_index_stays(cache):
    part = parts_folder(cache) / "v_a.h5"
    late = cache.stat().st_mtime + 10
    os.utime(part, (late, late))
    leftovers = collect_garbage(cache, delete=True)
    assert part not in leftovers.files and part.exists()


def test_a_row_without_features_keeps_its_part(cache):
    with CacheWriter(cache, small_contents(), sentence_tokens()) as writer:
        writer.reuse_if_unchanged("v_b", "hash of v_b")
        writer.record_without_features("v_a", status="pending", reason="not extracted yet.")
        writer.write_index()
    assert names(cache) == ["feats.h5.parts/v_c.h5"]


def test_nothing_is_deleted_while_a_run_is_writing(cache):
    before = tree(cache.parent)
    with CacheWriter(cache, small_contents(), sentence_tokens()), pytest.raises(CacheError, match="is writing here"):
        collect_garbage(cache, delete=True)
    assert tree(cache.parent) == before


def test_a_damaged_index_removes_nothing(cache):
    cache.write_bytes(cache.read_bytes()[:-1])
    before = tree(cache.parent)
    with pytest.raises(CacheError, match="damaged"):
        collect_garbage(cache, delete=True)
    assert tree(cache.parent) == before


def test_parts_next_to_a_packed_file_are_not_deleted(cache):
    packed = pack(cache, out=cache.with_name("p.h5"))
    shutil.copytree(parts_folder(cache), parts_folder(packed))
    before = tree(cache.parent)
    assert collect_garbage(packed, delete=True).files == {} and tree(cache.parent) == before


def test_the_command_lists_and_deletes(cache):
    def costl(*more: str):
        return CliRunner().invoke(main, ["cache", "gc", str(cache), *more])

    listed = costl()
    assert listed.exit_code == 0 and "2 files to delete" in listed.stdout and "--delete" in listed.stderr
    report = json.loads(costl("--delete", "--json").stdout)
    assert report["deleted"] and [Path(path).name for path in report["files"]] == ["v_a.h5", "v_c.h5"]
    assert costl().stdout == "0 files to delete, 0.0 MB.\n"

"""What nothing needs is listed, and removed only when asked; nothing else is ever touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner
from test_cache import contents, features, words

from costl.commands import main
from costl.pipeline.cache.gc import collect
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
    with CacheWriter(path, contents(), words()) as writer:
        for video_id in ("v_a", "v_b", "v_c"):
            writer.store(video_id, **features(video_id))
            os.utime(parts_folder(path) / f"{video_id}.h5", (1e9, 1e9))
        writer.write_index()
    with CacheWriter(path, contents(), words()) as writer:
        writer.keep("v_b", "hash of v_b")
        writer.write_index()
    return path


def tree(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def names(cache: Path) -> list[str]:
    return [one.path.relative_to(cache.parent).as_posix() for one in collect(cache).found]


def test_parts_of_videos_that_left_are_listed_and_stay_until_asked(cache):
    before, sizes = tree(cache.parent), sum((parts_folder(cache) / f"{v}.h5").stat().st_size for v in ("v_a", "v_c"))
    found = collect(cache)
    assert names(cache) == ["feats.h5.parts/v_a.h5", "feats.h5.parts/v_c.h5"]
    assert (found.size_bytes, found.deleted, tree(cache.parent)) == (sizes, False, before)
    assert found.lines()[-1] == f"2 files to delete, {sizes / 1e3:.1f} kB."
    assert collect(cache, delete=True).deleted
    assert before - tree(cache.parent) == {"feats.h5.parts/v_a.h5", "feats.h5.parts/v_c.h5"}
    assert verify(cache).damaged == () and collect(cache).found == ()


def test_what_killed_runs_left_and_words_of_before_are_found(cache):
    folder = parts_folder(cache)
    (folder / "words" / f"{'a' * 64}.h5").write_bytes(CacheReader(cache).words_path.read_bytes())
    strays = [
        folder / ".v_b.h5.12.tmp",
        folder / "words" / f".{'b' * 64}.h5.7-0fe1.tmp",
        cache.parent / ".feats.h5.99.tmp",
    ]
    for stray in strays:
        stray.write_bytes(b"half")
    found = {one.path for one in collect(cache, delete=True).found}
    assert found == {*strays, folder / "words" / f"{'a' * 64}.h5", folder / "v_a.h5", folder / "v_c.h5"}
    assert tree(folder) == {".lock", "v_b.h5", f"words/{CacheReader(cache).words_path.name}"}


def by_someone_else(part: Path) -> None:
    with h5py.File(part, "w") as file:
        file["mine"] = 1


def of_another_name(part: Path) -> None:
    shutil.copy(part.with_name("v_b.h5"), part)


def text(part: Path) -> None:
    part.write_text("notes")


@pytest.mark.parametrize("make", [by_someone_else, of_another_name, text], ids=lambda make: make.__name__)
def test_what_is_not_known_to_be_ours_stays(cache, make):
    foreign = parts_folder(cache) / "v_a.h5"
    foreign.unlink()
    make(foreign)
    os.utime(foreign, (1e9, 1e9))
    found = collect(cache, delete=True)
    assert found.foreign == (foreign,) and foreign.exists() and not (foreign.with_name("v_c.h5")).exists()


def test_files_of_other_names_links_and_other_caches_are_not_even_looked_at(cache, tmp_path):
    folder = parts_folder(cache)
    others = [folder / "notes.txt", folder / ".notes.tmp", cache.parent / ".other.h5.12.tmp", cache.parent / "v_z.h5"]
    for other in others:
        other.write_bytes(b"mine")
    (folder / "link.h5").symlink_to(cache.parent / "v_z.h5")
    shutil.copytree(folder, cache.parent / "other.h5.parts", symlinks=True)
    before = tree(cache.parent)
    collect(cache, delete=True)
    assert before - tree(cache.parent) == {"feats.h5.parts/v_a.h5", "feats.h5.parts/v_c.h5"}


def test_a_part_that_is_newer_than_the_index_stays(cache):
    part = parts_folder(cache) / "v_a.h5"
    late = cache.stat().st_mtime + 10
    os.utime(part, (late, late))
    found = collect(cache, delete=True)
    assert found.foreign == (part,) and part.exists()


def test_a_row_without_features_keeps_its_part(cache):
    with CacheWriter(cache, contents(), words()) as writer:
        writer.keep("v_b", "hash of v_b")
        writer.note("v_a", status="pending", reason="not extracted yet.")
        writer.write_index()
    assert names(cache) == ["feats.h5.parts/v_c.h5"]


def test_nothing_is_touched_while_a_run_is_writing(cache):
    before = tree(cache.parent)
    with CacheWriter(cache, contents(), words()), pytest.raises(CacheError, match="is writing here"):
        collect(cache, delete=True)
    assert tree(cache.parent) == before


def test_a_damaged_index_removes_nothing(cache):
    cache.write_bytes(cache.read_bytes()[:-1])
    before = tree(cache.parent)
    with pytest.raises(CacheError, match="damaged"):
        collect(cache, delete=True)
    assert tree(cache.parent) == before


def test_beside_a_packed_file_lies_nothing_of_its_own(cache):
    packed = pack(cache, out=cache.with_name("p.h5")).path
    shutil.copytree(parts_folder(cache), parts_folder(packed))
    before = tree(cache.parent)
    assert collect(packed, delete=True).found == () and tree(cache.parent) == before


def test_the_command_lists_and_deletes(cache):
    def costl(*more: str):
        return CliRunner().invoke(main, ["cache", "gc", str(cache), *more])

    listed = costl()
    assert listed.exit_code == 0 and "2 files to delete" in listed.stdout and "--delete" in listed.stderr
    told = json.loads(costl("--delete", "--json").stdout)
    assert told["deleted"] and [Path(one["path"]).name for one in told["found"]] == ["v_a.h5", "v_c.h5"]
    assert costl().stdout == "0 files to delete, 0 bytes.\n"

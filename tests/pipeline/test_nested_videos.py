"""Videos in deeper folders: their names, what is left out, and every command of a cache with such names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.pipeline.add_queries import add_queries
from costl.pipeline.annotations import with_similar_name
from costl.pipeline.cache.gc import collect_garbage
from costl.pipeline.cache.inspect import Status, inspect_video
from costl.pipeline.cache.merge import merge
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.errors import CacheError, UsageError, suggest
from costl.pipeline.extract import ExtractReport, extract
from costl.pipeline.inputs import Inputs, read_inputs
from costl.pipeline.preview.thumbnails import Thumbnails
from costl.pipeline.videos import find_videos, folder_of, left_out, list_videos, video_names

# What a folder holds: the path of a file, and the name of its video; "" for a file that is left out without a word.
TREE = {
    "garden.mp4": "garden",
    "2026/garden.mkv": "2026/garden",
    "2026/Garden.mp4": "2026/Garden",
    "2026/05 x < y/k.1.MP4": "2026/05 x < y/k.1",
    "videos/a.mp4": "videos/a",
    "bundle.mov/clip.mp4": "bundle.mov/clip",
    "2026/notes.txt": "",
    ".hidden/b.mp4": "",
    ".costl/c.mp4": "",
    "2026/.trash/d.mp4": "",
    "$RECYCLE.BIN/e.mp4": "",
    "2026/@eaDir/f.mp4": "",
}
EMPTY = "2026/empty.mp4/notes.txt"  # a folder that is called like a video
LEFT_OUT = ("._garden.mp4", "2026/.h.mkv", "2026/05 x < y/i.mp4.part")
# Names that some file system or program takes for something else.
NAMES = ("flat", "2026/garden", "2026/x < y/été", "2025/CON/a:b?", "2025/trip. /k.1", "2025/50%41", f"long/{'l' * 190}")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names_in(folder: Path) -> list[str]:
    return [video.name for video in find_videos(folder, recursive=True)]


# --- which files are videos, and their names ------------------------------------------------------------------------


def test_videos_in_deeper_folders_are_called_by_their_paths(tmp_path):
    touch(tmp_path, *TREE, *LEFT_OUT, EMPTY)
    videos = find_videos(tmp_path, recursive=True)
    assert {video.path.relative_to(tmp_path).as_posix(): video.name for video in videos} == {
        path: name for path, name in TREE.items() if name
    }
    assert [video.id for video in videos] == sorted(video.id for video in videos)
    assert left_out(tmp_path, recursive=True) == sorted([*LEFT_OUT, "2026/empty.mp4"])
    assert left_out(tmp_path) == ["._garden.mp4", "bundle.mov"]
    assert video_names(list_videos(tmp_path)) == {path: name for path, name in TREE.items() if name}
    assert [video.name for video in find_videos(tmp_path)] == ["garden"]


def test_a_flat_folder_is_the_same_with_and_without_deeper_folders(tmp_path):
    touch(tmp_path, "b.mp4", "a.b.mkv", "CON.mp4", "é.webm", "notes.txt", ".hidden/x.mp4")
    assert find_videos(tmp_path, recursive=True) == find_videos(tmp_path)
    assert all(not video.stored_name for video in find_videos(tmp_path, recursive=True))


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_called_videos_counts_as_the_folder(tmp_path, is_link):
    place = touch(tmp_path / "place", "a.mp4", "2026/b.mp4")
    data = touch(tmp_path / "data", "train.jsonl", "extra/c.mp4", "pipe.txt")
    if is_link:
        (data / "videos").symlink_to(place)
        (data / "extra" / "link").symlink_to(place)
    else:
        shutil.copytree(place, data / "videos")
    assert names_in(data) == ["2026/b", "a", "extra/c"] and names_in(data / "videos") == ["2026/b", "a"]
    assert folder_of(data, find_videos(data, recursive=True)) == data
    (data / "extra" / "c.mp4").unlink()
    assert folder_of(data, find_videos(data, recursive=True)) == data / "videos"
    touch(data, "own.mp4")
    assert names_in(data) == ["own", *([] if is_link else ["videos/2026/b", "videos/a"])]


def test_a_non_file_counts_only_next_to_videos(tmp_path):
    (tmp_path / "2026").mkdir()
    for name in ("dangling.mp4", "2026/dangling.mp4"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no videos \(.*\), expected .* here or in its folders"):
        find_videos(tmp_path, recursive=True)
    assert find_videos(tmp_path, recursive=True, allow_none=True) == []
    touch(tmp_path, "2026/real.mp4")
    assert names_in(tmp_path) == ["2026/dangling", "2026/real"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("2026/a.mp4", "2026/a.mkv", "b.mp4"), "2026/a.mkv and 2026/a.mp4: two videos with one id, '2026/a'"),
        (("videos/x/a.mp4", "x/a.mp4"), "videos/x/a.mp4 and x/a.mp4: two videos with one id, 'x/a'"),
        (("a.mp4", "a.mkv"), "a.mkv and a.mp4: two videos with one id, 'a'"),
    ],
)
def test_two_videos_of_one_name_are_refused(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(UsageError, match=message):
        find_videos(tmp_path, recursive=True)


def test_files_of_one_name_in_two_folders_have_ids_of_their_own(tmp_path):
    touch(tmp_path, "a/x.mp4", "b/x.mp4", "a%2Fx.mp4", "a%252Fx.mp4")
    assert len({video.id for video in find_videos(tmp_path, recursive=True)}) == 4


# --- annotations that name them -------------------------------------------------------------------------------------


def rows(*vids: str) -> str:
    made = ({"qid": n, "query": "a dog", "vid": vid, "duration": 9, "relevant_windows": [[1, 3]]} for n, vid in enumerate(vids))
    return "".join(json.dumps(row) + "\n" for row in made)


def inputs(folder: Path, *vids: str) -> Inputs:
    return read_inputs(folder, {"train": rows(*vids)} if vids else None, {}, allow_missing=False)


def test_a_note_says_which_deeper_videos_no_annotation_names(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "2026/c.mp4", "raw/d.mp4", "raw/e.mp4")
    assert inputs(tmp_path).notes == () and len(inputs(tmp_path).videos) == 5
    read = inputs(tmp_path, "a", "2026/c")
    assert len(read.videos) == 5 and len(read.notes) == 1
    assert read.notes[0].startswith("No annotation names 2 videos in deeper folders, which are extracted as well: raw/d, raw/e.")
    assert inputs(tmp_path, "2026/c", "raw/d", "raw/e").notes == ()


@pytest.mark.parametrize("vid", ["2026/e\u0301te\u0301", "2026/été.mp4", "2026\\été", "2026\\été.MP4"])
def test_names_that_differ_in_form_alone_are_read(tmp_path, vid):
    read = inputs(touch(tmp_path, "2026/été.mp4"), vid)
    assert json.loads(read.annotations["train"])["vid"] == "2026/été" and "read as '2026/été'" in read.notes[0]


@pytest.mark.parametrize(
    ("vid", "hint"),
    [
        ("garden", r"'garden' \(did you mean '2026/garden'\?\)\. .* the name of a video is its path, such as '2026/garden'\."),
        ("Gardn.mp4", r"'Gardn.mp4' \(did you mean '2026/garden'\?\)"),
        ("2025/garden", r"did you mean '2026/garden'\?"),
        ("twin", r"'twin' \(did you mean 'a/twin' or 'b/twin'\?\)"),
        ("nothing", r"not here: nothing\. Here are 3"),
    ],
)
def test_a_name_without_its_folder_is_explained(tmp_path, vid, hint):
    touch(tmp_path, "2026/garden.mp4", "a/twin.mp4", "b/twin.mkv")
    with pytest.raises(UsageError, match=hint):
        inputs(tmp_path, vid)


def test_similar_names_are_found_by_their_last_part():
    assert with_similar_name("2026/garden", ["garden"]) == "'2026/garden' (did you mean 'garden'?)"
    assert suggest("garden", ["footage/2026/summer/garden", "kitchen"]) == "Did you mean footage/2026/summer/garden?"
    assert suggest("garden", ["a/garden", "b/Garden", "garde"]) == "Did you mean a/garden or b/Garden?"
    assert suggest("kitchn", ["a/b", "kitchen"]) == "Did you mean kitchen?" and suggest("zz", ["a/b"]) == "Known: a/b."


# --- a cache of them ------------------------------------------------------------------------------------------------


def run(folder: Path, out: Path, **options) -> ExtractReport:
    return extract(folder, **{"out": out, "device": "cpu", "workers": 1, "annotations": folder / "labels"} | options)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder of nested videos with its cache `feats.h5`, and two of them in a flat folder with `flat.h5`."""
    home = tmp_path_factory.mktemp("home")
    write_clip_weights(home / "clip")
    for number, name in enumerate(NAMES):
        path = home / "nested" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(path, frame_times(50 + number))
    (home / "flat").mkdir()
    for number, name in enumerate(NAMES[1:3]):
        shutil.copy(home / "nested" / f"{name}.mp4", home / "flat" / f"v{number}.mp4")
    touch(home / "nested" / "labels", "train.jsonl").joinpath("train.jsonl").write_text(rows(*NAMES), encoding="utf-8")
    for name, cache, options in (("nested", "feats.h5", {}), ("flat", "flat.h5", {"annotations": None})):
        (home / name / "costl.yaml").write_text("extract: {weights: ../clip, fps: 2}\n")
        report = run(home / name, home / cache, **options)
        assert report.failed == () and len(report.done) == (len(NAMES) if name == "nested" else 2)
    return home


def test_features_are_those_of_the_same_files_in_a_flat_folder(home):
    nested, flat = CacheReader(home / "feats.h5"), CacheReader(home / "flat.h5")
    assert sorted(nested.video_ids) == sorted(NAMES) and nested.contents.videos == "nested"
    for number, name in enumerate(NAMES[1:3]):
        assert np.array_equal(nested.tokens(name), flat.tokens(f"v{number}"))
    parts = [part.name for part in parts_folder(home / "feats.h5").glob("*.h5")]
    assert all(part.isascii() and not set(part) & set('/\\:*?"<>|') and len(part) <= 210 for part in parts)


def test_a_second_run_skips_and_a_removed_video_leaves(home, tmp_path):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    again = run(tmp_path / "nested", tmp_path / "feats.h5")
    assert again.done == () and sorted(again.skipped) == sorted(NAMES)
    assert (tmp_path / "feats.h5").read_bytes() == (home / "feats.h5").read_bytes()
    shutil.rmtree(tmp_path / "nested" / "2025" / "CON")
    left = run(tmp_path / "nested", tmp_path / "feats.h5", annotations={"train": rows("2026/garden")})
    assert len(left.skipped) == len(NAMES) - 1
    removed = {file.name for file in collect_garbage(tmp_path / "feats.h5", delete=True).files}
    assert "2025%2FCON%2Fa%3Ab%3F.h5" in removed
    assert verify(tmp_path / "feats.h5").exit_code == 0
    moved = tmp_path / "nested" / "2026" / "garden.mp4"
    moved.rename(tmp_path / "nested" / "garden.mp4")
    with pytest.raises(UsageError, match=r"'2026/garden' \(did you mean 'garden'\?\)"):
        run(tmp_path / "nested", tmp_path / "feats.h5", annotations={"train": rows("2026/garden")})


def test_shares_join_to_the_whole_and_a_packed_cache_reads_the_same(home, tmp_path):
    for share in (1, 2):
        run(home / "nested", tmp_path / f"{share}.h5", shard=f"{share}/2")
    merge(tmp_path / "whole.h5", [tmp_path / "1.h5", tmp_path / "2.h5"])
    assert verify(tmp_path / "whole.h5").exit_code == 0
    packed = CacheReader(pack(home / "feats.h5", out=tmp_path / "packed.h5"))
    whole, feats = CacheReader(tmp_path / "whole.h5"), CacheReader(home / "feats.h5")
    assert whole.rows == feats.rows == packed.rows and whole.annotations("train") == rows(*NAMES)
    for name in NAMES:
        assert np.array_equal(packed.tokens(name), feats.tokens(name))
        assert inspect_video(tmp_path / "packed.h5", name).facts["row"]["name"] == name
    with pytest.raises(CacheError, match=r"no video .garden. among 7\. Did you mean 2026/garden"):
        inspect_video(home / "feats.h5", "garden")


def test_queries_and_pictures_of_nested_videos(home, tmp_path):
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    cache = tmp_path / "feats.h5"
    (tmp_path / "more.jsonl").write_text(rows("2026/garden", "flat"), encoding="utf-8")
    assert add_queries(cache, tmp_path / "more.jsonl", device="cpu").exit_code == 0
    (tmp_path / "more.jsonl").write_text(rows("garden"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"'garden' \(did you mean '2026/garden'\?\)"):
        add_queries(cache, tmp_path / "more.jsonl", device="cpu")
    thumbnails = Thumbnails(CacheReader(cache))
    assert [len(thumbnails.of_clips(name, [0, 2])) for name in NAMES] == [2] * len(NAMES)
    # A cache of videos in one folder does not look into deeper ones, where files of one name may lie.
    touch(tmp_path / "flat", "deep/twin.mp4", "deep/twin.mkv")
    assert len(Thumbnails(CacheReader(tmp_path / "flat.h5")).of_clips("v0", [1])) == 1


def test_a_video_that_fails_is_listed_by_its_path_and_grouped(home, tmp_path):
    folder = touch(tmp_path / "videos of two days", "1/bad.mp4", "2/worse.mp4")
    (folder / "costl.yaml").write_text(f"extract: {{weights: {home / 'clip'}}}\n")
    report = run(folder, tmp_path / "feats.h5", annotations=None)
    assert [row.name for row in report.failed] == ["1/bad", "2/worse"] and report.exit_code == 1
    assert any(line.endswith("(1/bad, 2/worse)") and line.split()[0] == "2" for line in report.messages())
    lines = Status(CacheReader(tmp_path / "feats.h5").rows).lines()
    assert [line.split()[0] for line in lines[:3]] == ["1/bad", "2/worse", "2"]

"""What is told of a cache and of a video is what they hold."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_cache import contents, features, words

from costl.commands import main
from costl.pipeline.cache.inspect import bars, inspect_cache, inspect_video, size_text, statistics
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError, UsageError


def test_a_whole_cache_is_told(world, tmp_path):
    facts = inspect_cache(world.cache).facts
    reader = CacheReader(world.cache)
    rows = [json.loads(line) for line in reader.annotations("train").splitlines()]
    assert facts["videos"]["with_features"] == 10 and facts["videos"]["clips"] == 120
    assert facts["videos"]["hours"] == pytest.approx(240 / 3600)
    assert facts["there"]["weights"] is True and facts["there"]["videos"] == 10
    assert facts["splits"]["train"] == {
        "rows": len(rows),
        "queries": len({row["query"] for row in rows}),
        "videos": 4,
        "without_features": 0,
    }
    queries = {json.loads(line)["query"] for split in reader.splits for line in reader.annotations(split).splitlines()}
    assert facts["words"]["queries"] == len(queries)
    assert facts["words"]["tokens"] == sum(len(reader.words(query).tokens) for query in queries)
    assert facts["sizes"]["parts"] == sum(reader.part_path(name).stat().st_size for name in reader.video_ids)
    assert facts["fingerprint"] == reader.fingerprint and facts["digest"] == reader.digest
    table = "\n".join(inspect_cache(world.cache).lines())
    for field in reader.fingerprint:
        assert f"\n  {field} " in table
    assert "(there)" in table and "10 of 10 are there" in table and reader.digest in table


def test_a_packed_file_is_told_as_its_parts_are(world, tmp_path):
    packed = pack(world.cache, out=tmp_path / "p.h5").path
    one, other = inspect_cache(world.cache).facts, inspect_cache(packed).facts
    apart = {"cache", "packed", "sizes"}
    assert {k: v for k, v in one.items() if k not in apart} == {k: v for k, v in other.items() if k not in apart}
    assert other["packed"] and other["sizes"]["parts"] == one["sizes"]["parts"]
    assert sum(other["sizes"].values()) == packed.stat().st_size


def test_what_has_moved_away_is_said(world, tmp_path):
    copy = world.copy(tmp_path)
    assert inspect_cache(copy.cache).facts["there"]["videos"] == 10
    shutil.rmtree(copy.videos)
    facts = inspect_cache(copy.cache).facts
    assert (facts["there"]["weights"], facts["there"]["videos"]) == (False, 0)
    assert "(no longer there)" in "\n".join(inspect_cache(copy.cache).lines())


@pytest.mark.parametrize("form", ["parts", "packed"])
def test_a_video_is_told_and_its_bytes_lie_where_it_says(world, tmp_path, form):
    cache = world.cache if form == "parts" else pack(world.cache, out=tmp_path / "p.h5").path
    facts = inspect_video(cache, "val_0000").facts
    tokens = CacheReader(world.cache).tokens("val_0000")
    about = facts["arrays"]["tokens"]
    with open(about["file"], "rb") as file:
        file.seek(about["offset"])
        assert file.read(about["bytes"]) == tokens.tobytes()
    norms = np.linalg.norm(tokens.astype(np.float32), axis=-1)
    assert facts["tokens"]["frame_norm"] == pytest.approx(norms[:, 0].mean(), rel=1e-5)
    assert facts["tokens"]["patch_norm"] == pytest.approx(norms[:, 1:].mean(), rel=1e-5)
    assert sum(facts["tokens"]["histogram"]) == norms[:, 1:].size and facts["tokens"]["finite"]
    assert facts["row"]["name"] == "val_0000" and facts["row"]["clips"] == 12


def test_times_are_compared_with_the_centres_of_the_clips(tmp_path):
    path, about = tmp_path / "f.h5", features("v_b")
    about["times_s"] = np.array([0.5, 3.0, 3.0, 7.0, 9.25])  # centres: 1 3 5 7 9
    with CacheWriter(path, contents(), words()) as writer:
        writer.store("v_b", **about)
        writer.write_index()
    times = inspect_video(path, "v_b").facts["times"]
    assert times == {
        "first_s": 0.5,
        "last_s": 9.25,
        "largest_gap_s": 4.0,
        "repeated": 1,
        "mean_distance_s": pytest.approx((0.5 + 2.0 + 0.25) / 5),
        "largest_distance_s": 2.0,
    }


def test_values_that_are_not_finite_are_said_aloud(tmp_path):
    path, about = tmp_path / "f.h5", features("v_b")
    about["tokens"][2, 3, 4] = np.inf
    with CacheWriter(path, contents(), words()) as writer:
        writer.store("v_b", **about)
        writer.write_index()
    assert "NOT ALL" in "\n".join(inspect_video(path, "v_b").lines())


@pytest.mark.parametrize("shape", [(200, 5, 8), (3, 1, 8), (70, 2, 3, 8)], ids=["long", "no patches", "layers"])
def test_statistics_in_blocks_are_those_of_the_whole(shape):
    tokens = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    found, norms = statistics(tokens), np.linalg.norm(tokens.astype(np.float32), axis=-1)
    patches = norms[..., 1:]
    assert found.frame_norm == pytest.approx(norms[..., 0].mean(), rel=1e-5)
    assert found.patch_norm == (pytest.approx(patches.mean(), rel=1e-5) if patches.size else None)
    shown = patches if patches.size else norms
    assert (found.least, found.most, sum(found.histogram)) == (shown.min(), shown.max(), shown.size)


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_a_bar_is_empty_exactly_where_the_count_is(counts):
    drawn = bars(tuple(counts))
    assert [mark == " " for mark in drawn] == [count == 0 for count in counts]
    assert (drawn[counts.index(max(counts))] == "█") == (max(counts) > 0)


def test_sizes_are_told_in_the_unit_that_fits():
    assert [size_text(n) for n in (0, 999, 1000, 5_800_000, 58 * 10**9)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "5.8 MB", "58.0 GB"),
    ]


def test_damaged_annotations_are_named(world, tmp_path):
    copy = world.copy(tmp_path, val="{not json\n")
    with pytest.raises(UsageError, match="annotations of val are damaged"):
        inspect_cache(copy.cache)


def test_the_command_says_what_there_is_and_names_what_is_not(world):
    def costl(*more: str):
        return CliRunner().invoke(main, ["cache", "inspect", str(world.cache), *more])

    assert "Fingerprint" in costl().stdout and "mean norm" in costl("val_0000").stdout
    assert json.loads(costl("val_0000", "--json").stdout)["row"]["id"] == "val_0000"
    assert json.loads(costl("--json").stdout)["format"] == 1
    unknown = costl("val_9999")
    assert unknown.exit_code == 3 and "no video 'val_9999'" in unknown.stderr


# Videos that changed since: verify --videos


def test_videos_that_changed_or_went_are_named(world, tmp_path):
    copy = world.copy(tmp_path)
    with open(copy.videos / "val_0000.mp4", "ab") as file:
        file.write(b"\0")
    (copy.videos / "val_0001.mp4").unlink()
    assert verify(copy.cache, videos=world.videos).changed == ()
    found = verify(copy.cache, quick=True, videos=copy.videos)
    assert [(one.name, one.path.name) for one in found.changed] == [
        ("val_0000", "val_0000.mp4"),
        ("val_0001", "val_0001"),
    ]
    assert (found.exit_code, found.damaged, found.videos) == (1, (), 10)
    assert found.lines()[-1] == "8 of 10 videos are those that were extracted."
    told = CliRunner().invoke(main, ["cache", "verify", str(copy.cache), "--videos", str(copy.videos), "--json"])
    assert told.exit_code == 1 and [one["name"] for one in json.loads(told.stdout)["changed"]] == [
        "val_0000",
        "val_0001",
    ]


def test_features_that_came_from_no_videos_cannot_be_compared_with_any(tmp_path, world):
    with CacheWriter(tmp_path / "f.h5", contents(), words()) as writer:
        writer.write_index()
    with pytest.raises(UsageError, match="were not made of videos"):
        verify(tmp_path / "f.h5", videos=world.videos)


def test_an_unknown_video_is_refused(world):
    with pytest.raises(CacheError, match="no video 'x'"):
        inspect_video(world.cache, "x")

"""`costl cache inspect` prints facts that match the content of a cache and of a video."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from small_cache import sentence_tokens, small_contents, video_features

from costl.commands import main
from costl.pipeline.cache.inspect import inspect_cache, inspect_video
from costl.pipeline.cache.pack import pack
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError


def test_the_facts_of_a_cache_match_its_content(world, tmp_path):
    facts = inspect_cache(world.cache).facts
    reader = CacheReader(world.cache)
    rows = [json.loads(line) for line in reader.annotations("train").splitlines()]
    assert facts["videos"]["with_features"] == 10 and facts["videos"]["clips"] == 120
    assert facts["videos"]["hours"] == pytest.approx(240 / 3600, abs=1e-3)
    assert facts["annotations"]["train"] == len(rows)
    queries = {json.loads(line)["query"] for split in reader.splits for line in reader.annotations(split).splitlines()}
    assert facts["words"]["queries"] == len(queries)
    assert facts["words"]["tokens"] == sum(len(reader.words(query).tokens) for query in queries)
    assert facts["fingerprint"] == reader.fingerprint | {"sha256": reader.digest}
    table = "\n".join(inspect_cache(world.cache).lines())
    for field in reader.fingerprint:
        assert f"\n  {field} " in table
    assert str(reader.videos) in table and reader.digest in table


def test_a_packed_file_has_the_facts_of_its_parts(world, tmp_path):
    packed = pack(world.cache, out=tmp_path / "p.h5")
    parts_facts, packed_facts = inspect_cache(world.cache).facts, inspect_cache(packed).facts
    assert parts_facts.keys() == packed_facts.keys()
    for name in parts_facts.keys() - {"cache"}:
        assert parts_facts[name] == packed_facts[name], name
    assert packed_facts["cache"]["packed"] and not parts_facts["cache"]["packed"]


@pytest.mark.parametrize("form", ["parts", "packed"])
def test_the_facts_of_a_video_locate_its_bytes(world, tmp_path, form):
    cache = world.cache if form == "parts" else pack(world.cache, out=tmp_path / "p.h5")
    facts = inspect_video(cache, "val_0000").facts
    tokens = CacheReader(world.cache).tokens("val_0000")
    about = facts["arrays"]["tokens"]
    with open(about["file"], "rb") as file:
        file.seek(about["offset"])
        assert file.read(about["bytes"]) == tokens.tobytes()
    norms = np.linalg.norm(tokens.astype(np.float32), axis=-1)
    assert facts["tokens"] == {
        "finite": True,
        "mean_frame_norm": pytest.approx(norms[:, 0].mean(), rel=1e-5),
        "mean_patch_norm": pytest.approx(norms[:, 1:].mean(), rel=1e-5),
    }
    assert facts["row"]["name"] == "val_0000" and facts["row"]["clips"] == 12


def test_times_are_compared_with_the_centres_of_the_clips(tmp_path):
    path, about = tmp_path / "f.h5", video_features("v_b")
    about["times_s"] = np.array([0.5, 3.0, 3.0, 7.0, 9.25])  # centres: 1 3 5 7 9
    with CacheWriter(path, small_contents(), sentence_tokens()) as writer:
        writer.store("v_b", **about)
        writer.write_index()
    times = inspect_video(path, "v_b").facts["times"]
    assert times == {
        "first_s": 0.5,
        "last_s": 9.25,
        "repeated_frames": 1,
        "largest_distance_from_centre_s": 2.0,
    }


def test_nonfinite_values_are_reported(tmp_path):
    path, about = tmp_path / "f.h5", video_features("v_b")
    about["tokens"][2, 3, 4] = np.inf
    with CacheWriter(path, small_contents(), sentence_tokens()) as writer:
        writer.store("v_b", **about)
        writer.write_index()
    assert inspect_video(path, "v_b").facts["tokens"]["finite"] is False


def test_the_command_prints_facts_and_names_a_missing_video(world):
    def costl(*more: str):
        return CliRunner().invoke(main, ["cache", "inspect", str(world.cache), *more])

    assert "\nfingerprint\n" in costl().stdout and "mean_patch_norm" in costl("val_0000").stdout
    assert json.loads(costl("val_0000", "--json").stdout)["row"]["id"] == "val_0000"
    assert json.loads(costl("--json").stdout)["cache"]["format"] == 2
    unknown = costl("val_9999")
    assert unknown.exit_code == 3 and "no video 'val_9999'" in unknown.stderr


def test_an_unknown_video_is_refused(world):
    with pytest.raises(CacheError, match="no video 'x'"):
        inspect_video(world.cache, "x")

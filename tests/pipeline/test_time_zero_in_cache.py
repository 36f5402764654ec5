"""Features, pictures and cuts count from the time 0 of players, and caches of format 1 are brought up to date."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import open_clip
import pytest
from numbered_videos import frame_times, make_video, pyav_frame_numbers, read_numbers
from tiny_clip import write_clip_weights

from costl.pipeline.cache.part import parts_folder
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.verify import verify
from costl.pipeline.extract import ExtractReport, extract
from costl.pipeline.feature_store import FeatureStore
from costl.pipeline.preview.cut import cut, frames_at

LATE_S = 3.0
FPS = 10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`late` begins with three seconds of sound only, `on_time` with its picture; decord does not seek exactly in `sought`."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "late.mp4", frame_times(40, FPS, LATE_S), audio=True)
    make_video(folder / "on_time.mp4", frame_times(40, FPS), audio=True)
    make_video(folder / "sought.mkv", frame_times(40, FPS))
    write_clip_weights(folder / "clip")
    row = {"qid": 1, "query": "a dog", "vid": "late", "duration": 7, "relevant_windows": [[3, 5]]}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def cache(folder, tmp_path) -> Path:
    run(folder, tmp_path / "feats.h5")
    return tmp_path / "feats.h5"


def run(folder: Path, out: Path) -> ExtractReport:
    return extract(folder, out=out, weights=str(folder / "clip"), fps=1.0, device="cpu", workers=1)


def rewrite_as_format_1(cache: Path, clip: Path) -> None:
    """Removes what format 1 did not have. Version 0.1 used decord by default, and stored CLIP's projection."""
    visual = open_clip.create_model(f"local-dir:{clip}").visual
    checksums = {}
    for path in parts_folder(cache).glob("*.h5"):
        with h5py.File(path, "r+") as part:
            del part.attrs["picture_start_s"], part["joint"]
            part.attrs["decoder"] = np.bytes_("decord 0.6.0")
            content = part["tokens"][()].tobytes() + part["times_s"][()].tobytes()
            checksums[path.name] = hashlib.sha256(content).hexdigest()
            part.attrs["checksum"] = np.bytes_(checksums[path.name])
    with h5py.File(cache, "r+") as index:
        index.attrs["format"] = 1
        rows = json.loads(index["rows"][()])
        for row in rows:
            del row["picture_start_s"]
            row |= {"decoder": "decord 0.6.0", "checksum": checksums[row["part"]]}
        scalars = {"norm_eps": visual.ln_post.eps, "logit_scale": 14.0, "normed": True}
        for name, value in (("rows", rows), ("joint/scalars", scalars)):
            del index[name]
            index[name] = np.bytes_(json.dumps(value))
        tensors = {"norm_weight": visual.ln_post.weight, "norm_bias": visual.ln_post.bias, "projection": visual.proj}
        for name, tensor in tensors.items():
            index[f"joint/{name}"] = tensor.detach().numpy()


def test_clips_before_the_first_picture_have_its_features(cache):
    features = CacheReader(cache)
    late = features.row("late")
    assert (late.picture_start_s, late.clips) == (LATE_S, 7) and late.duration_s == pytest.approx(7.0, abs=0.1)
    tokens = features.tokens("late")
    assert all((tokens[clip] == tokens[0]).all() for clip in range(3)) and (tokens[3] != tokens[2]).any()
    assert features.times_s("late").tolist() == pytest.approx([3.0, 3.0, 3.0, 3.5, 4.5, 5.5, 6.5])
    assert features.row("on_time").picture_start_s == 0.0
    assert features.times_s("on_time")[0] == pytest.approx(0.5)


def test_of_format_1_only_what_would_be_different_is_extracted_again(folder, cache):
    expected = CacheReader(cache)
    vectors = {name: expected.joint_vectors(name) for name in ("on_time", "late")}
    rewrite_as_format_1(cache, folder / "clip")
    old = CacheReader(cache)
    assert old.format == 1 and old.row("late").picture_start_s is None and not verify(cache).damaged
    # Joint vectors follow from the frame tokens there.
    np.testing.assert_allclose(old.joint_vectors("on_time"), vectors["on_time"], atol=1e-3)
    some = old.joint_vectors("late", clips=[1, 5])
    np.testing.assert_allclose(some, old.joint_vectors("late")[[1, 5]], atol=1e-6)  # a smaller product rounds differently
    report = run(folder, cache)
    assert (set(report.done), report.skipped) == ({"late", "sought"}, ("on_time",))
    features = CacheReader(cache)
    assert features.format == 2 and not verify(cache).damaged
    assert features.row("late") == expected.row("late") and features.row("on_time").picture_start_s is None
    assert (features.tokens("on_time") == expected.tokens("on_time")).all()
    for name in vectors:  # of format 1, and of format 2
        np.testing.assert_allclose(features.joint_vectors(name), vectors[name], atol=1e-3)
    assert run(folder, cache).skipped == ("late", "on_time", "sought")


@pytest.mark.parametrize(("name", "is_kept"), [("late.mp4", False), ("on_time.mp4", True), ("sought.mkv", False)])
def test_a_store_keeps_features_of_format_1_that_are_still_right(folder, cache, tmp_path, name, is_kept):
    options = {"model": "ViT-B-32", "weights": str(folder / "clip"), "device": "cpu", "owner": "m", "workers": 1}
    fingerprint = CacheReader(cache).fingerprint
    video = folder / name
    stored, video_id = FeatureStore(folder=tmp_path / "store", fingerprint=fingerprint, **options).features(video, ["a dog"])
    rewrite_as_format_1(stored.path, folder / "clip")
    again, _ = FeatureStore(folder=tmp_path / "store", fingerprint=fingerprint, **options).features(video, ["a dog"])
    assert (again.row(video_id).picture_start_s is None) == is_kept


def test_pictures_and_cuts_are_those_that_a_player_shows(folder, tmp_path):
    late = folder / "late.mp4"
    assert read_numbers(frames_at(late, [1.0, 3.55, 5.05], height=48)) == [0, 5, 20]
    cut(late, tmp_path / "cut.mp4", start_s=4.0, end_s=6.0)
    assert list(dict.fromkeys(pyav_frame_numbers(tmp_path / "cut.mp4")[1])) == list(range(10, 30))

"""A trained run finds the moments again in the videos that CLIP puts first, with the scores of its calibration."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import costl
from costl.ask.predictors import TrainedPredictor
from costl.data.annotations import Prediction, Query
from costl.data.queries import read_queries
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import UsageError, VideoError
from costl.pipeline.feature_store import FeatureStore
from costl.predict.loaded_run import open_run
from costl.search import library as library_module
from costl.search import run_calibration as module
from costl.search import second_tier
from costl.search.moments import suppress_overlaps
from costl.search.run_calibration import run_calibration

QUERY = "the blue ring"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def ordinary(world) -> np.ndarray:
    """Stands in for the vectors of ordinary sentences."""
    width = CacheReader(world.cache).joint.width
    vectors = np.random.default_rng(0).normal(size=(30, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def few_pairs(monkeypatch) -> None:
    """The small world has six validation queries."""
    monkeypatch.setattr("costl.search.calibrate.MIN_PAIRS", 5)


def test_the_run_gives_the_moments_it_gives_in_evaluation(world, run):
    """The library is the run's own cache, so its features are used as they are."""
    library = costl.library(world.cache, run=run, device="cpu")
    result = library.search(QUERY, min_score=0.0, top=1000)
    loaded = open_run(run, device="cpu")
    features = CacheReader(world.cache)
    query = read_queries(features, "test")[0]
    words = library._queries._text_encoder().encode([QUERY])[0]
    loaded = type(loaded)(loaded.run, loaded.features.with_words({QUERY: words}), loaded.model, loaded.device)
    (expected,) = loaded.predict([replace(query, query=QUERY, vid=result.hits[0].video.stem, windows=())])
    found = [(hit.start_s, hit.end_s, hit.score) for hit in result.hits if hit.video.stem == expected.vid]
    apart = suppress_overlaps(np.array(expected.windows), limit=100, max_overlap=0.0)
    np.testing.assert_allclose(sorted(found), sorted(apart.tolist()), atol=1e-5)  # other batches round differently
    assert result.answered_by == str(run)


def test_an_image_is_searched_for_without_the_run(world, run, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    sentence, image = costl.library(world.cache, run=run, device="cpu").search_all([QUERY], images=[tmp_path / "red.png"])
    assert sentence.answered_by.startswith(str(run))
    assert image.answered_by == "zero-shot ViT-B-32, clip, since a trained model reads only sentences"
    alone = costl.library(world.cache, device="cpu").search(image=tmp_path / "red.png")
    assert (image.hits, image.below) == (alone.hits, alone.below)


def test_only_the_short_list_is_searched_again(world, run, monkeypatch):
    monkeypatch.setattr(library_module, "SECOND_TIER_VIDEOS", 2)
    zero_shot = costl.library(world.cache, device="cpu").search(QUERY, min_score=0.0, top=1000)
    first_two = list(dict.fromkeys(hit.name for hit in zero_shot.hits))[:2]
    found = costl.library(world.cache, run=run, device="cpu").search(QUERY, min_score=0.0, top=1000)
    assert {hit.name for hit in found.hits} == set(first_two)


def test_a_folder_is_searched_with_features_made_for_the_run(world, run, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(world.videos.glob("test_0*.mp4")):
        shutil.copy(path, folder)
    library = costl.library(folder, run=run, weights=str(world.videos / "clip"), device="cpu", workers=1)
    in_cache = costl.library(world.cache, run=run, device="cpu").search(QUERY, min_score=0.0, top=1000).hits
    expected = {(hit.name, round(hit.start_s, 1), round(hit.end_s, 1)) for hit in in_cache}
    hits = library.search(QUERY, min_score=0.0, top=1000).hits
    assert {(hit.name, round(hit.start_s, 1), round(hit.end_s, 1)) for hit in hits} <= expected and hits


@pytest.fixture
def long_videos(monkeypatch) -> None:
    """The videos of the small world, of 12 clips, are longer than one window of 8."""
    monkeypatch.setattr(TrainedPredictor, "window_clips", 8)
    monkeypatch.setattr(second_tier, "WINDOWS_OF_A_VIDEO", 1)


def found_in(library) -> list[tuple]:
    hits = library.search(QUERY, min_score=0.0, top=1000).hits
    return [(hit.name, hit.start_s, hit.end_s, hit.score, hit.duration_s) for hit in hits]


def test_a_window_is_grounded_as_if_it_were_a_video(world, run, long_videos, monkeypatch, tmp_path):
    """The clips of the window are written to a cache as a video; the moments in it are those of the search, moved back."""
    window = range(4, 12)
    monkeypatch.setattr(second_tier, "windows_around", lambda *_: [window])
    monkeypatch.setattr(library_module, "SECOND_TIER_VIDEOS", 1)
    library = costl.library(world.cache, run=run, device="cpu")
    found = found_in(library)
    features = CacheReader(world.cache)
    words = {QUERY: library._queries._text_encoder().encode([QUERY])[0]}
    name = Path(found[0][0]).stem
    with CacheWriter(tmp_path / "window.h5", features.contents, words) as writer:
        arrays = {"tokens": np.array(features.tokens(name)[4:]), "joint": features.joint_vectors(name)[4:].astype(np.float16)}
        writer.store(name, **arrays, times_s=np.arange(8.0), duration_s=16.0, content_hash="")
        writer.write_index()
    loaded = open_run(run, device="cpu")
    alone = type(loaded)(loaded.run, CacheReader(tmp_path / "window.h5"), loaded.model, loaded.device)
    (expected,) = alone.predict([Query(0, QUERY, name, 16.0)])
    apart = suppress_overlaps(np.array(expected.windows), limit=100, max_overlap=0.0)
    moments = [row[1:4] for row in found]
    np.testing.assert_allclose(sorted(moments), sorted(np.add(apart, [8.0, 8.0, 0.0]).tolist()), atol=1e-3)
    assert found[0][4] == features.grid(name).duration_s == 24.0


def test_windows_of_files_give_the_hits_of_windows_of_the_cache(world, run, long_videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(world.videos.glob("test_0*.mp4")):
        shutil.copy(path, folder)
    library = costl.library(folder, run=run, weights=str(world.videos / "clip"), device="cpu", workers=1)
    expected = {row[:1] + tuple(np.round(row[1:3], 1)) for row in found_in(costl.library(world.cache, run=run, device="cpu"))}
    found = {row[:1] + tuple(np.round(row[1:3], 1)) for row in found_in(library)}
    assert found and found <= expected
    stored = [part.stem for part in (tmp_path / "home").rglob("clips-*.h5")]
    assert len(stored) == 2 * 4  # quarters of one window of each video
    assert {path.suffixes[0] for path in (tmp_path / "home").glob("costl/*/*.h5")} == {".windows"}  # no whole video


def test_a_moment_in_two_windows_is_one_hit(world, run, long_videos, monkeypatch):
    """The first window, of 0 to 8 s, cuts off what the second one, of 4 to 12 s, shows in full. Calibration is unknown."""
    moments = {"0": ((4.0, 8.0, 0.6), (0.0, 2.0, 0.3)), "2": ((0.0, 6.0, 0.9), (7.0, 8.0, 0.2))}

    def predict(self, queries, features, progress):
        starts = [str(features.windows[query.vid][0].clips.start) for query in queries]
        return [Prediction(q.qid, q.query, q.vid, moments[start], ()) for q, start in zip(queries, starts, strict=True)]

    monkeypatch.setattr(TrainedPredictor, "predict", predict)
    monkeypatch.setattr(second_tier, "windows_around", lambda *_: [range(4), range(2, 6)])
    monkeypatch.setattr(library_module, "SECOND_TIER_VIDEOS", 1)
    found = found_in(costl.library(world.cache, run=run, device="cpu"))
    assert [row[1:4] for row in found] == [(4.0, 10.0, 0.9), (0.0, 2.0, 0.3), (11.0, 12.0, 0.2)]


@pytest.mark.parametrize("status", ["failed", "changed", "timeout", "error"])
def test_a_damaged_window_is_judged_by_the_whole_video(world, run, long_videos, monkeypatch, tmp_path, status):
    class WholeError(Exception):
        pass

    def window_features(self, video, queries, windows, *, progress):
        raise VideoError("a.mp4: damaged", status=status)

    def whole_features(self, video, queries, *, progress):
        raise WholeError

    monkeypatch.setattr(FeatureStore, "window_features", window_features)
    monkeypatch.setattr(FeatureStore, "features", whole_features)
    (tmp_path / "videos").mkdir()
    shutil.copy(world.videos / "test_0000.mp4", tmp_path / "videos" / "a.mp4")
    library = costl.library(tmp_path / "videos", run=run, weights=str(world.videos / "clip"), device="cpu", workers=1)
    with pytest.raises(WholeError if status == "failed" else VideoError):
        library.search(QUERY)


def test_none_is_zero_shot(world, run):
    library = costl.library(world.cache, run=run, device="cpu")
    library.use_run("none")
    assert library.search(QUERY).answered_by.startswith("zero-shot")
    with pytest.raises(UsageError, match="no such folder"):
        library.use_run("nowhere")


def test_a_calibration_is_computed_once_and_stored(world, run, ordinary, few_pairs, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run")
    calibration = run_calibration(folder, ordinary, device="cpu")
    assert calibration is not None and len(calibration.present) == len(read_queries(CacheReader(world.cache), "val"))
    monkeypatch.setattr(module, "open_run", lambda *_, **__: pytest.fail("computed again"))
    assert run_calibration(folder, ordinary, device="cpu") == calibration


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"checksum": 3}', '{"checksum": "", "weights": [1], "present": []}'])
def test_a_damaged_calibration_is_computed_again(run, ordinary, few_pairs, tmp_path, content):
    folder = shutil.copytree(run, tmp_path / "run")
    expected = run_calibration(folder, ordinary, device="cpu")
    (folder / "calibration.json").write_text(content)
    assert run_calibration(folder, ordinary, device="cpu") == expected


def test_a_calibration_belongs_to_its_weights(run, ordinary, few_pairs, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    run_calibration(folder, ordinary, device="cpu")
    stored = json.loads((folder / "calibration.json").read_text())
    (folder / "calibration.json").write_text(json.dumps(stored | {"weights": [9, 9, 9], "checksum": "other"}))
    assert run_calibration(folder, ordinary, device="cpu").weights == tuple(stored["weights"])


def test_too_few_pairs_give_no_calibration(run, ordinary, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    assert run_calibration(folder, ordinary, device="cpu") is None
    assert not (folder / "calibration.json").exists()


def test_without_the_cache_there_is_no_calibration(run, ordinary, few_pairs, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"cache": str(tmp_path / "gone.h5")}))
    assert run_calibration(folder, ordinary, device="cpu") is None

"""A library answers sentences and images: the best moments of all videos, filtered, scored, from a folder or a cache."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import costl
from costl.pipeline.cache.lock import locked_cache
from costl.pipeline.cache.pack_table import PackTable, read_table
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import BusyError, CacheError, UsageError
from costl.pipeline.extract import extract
from costl.pipeline.preview.cut import frames_at
from costl.search import queries as queries_module
from costl.search.filters import Filters
from costl.search.library import Library
from costl.search.moments import find_segments
from costl.search.open_library import open_library

QUERY = "a large red circle"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def indexed(world, tmp_path_factory) -> Path:
    """A folder of eight videos in nested folders, with its index."""
    folder = tmp_path_factory.mktemp("library") / "videos"
    for number, path in enumerate(sorted(world.videos.glob("*.mp4"))[:8]):
        target = folder / f"202{number % 3}" / path.name if number % 2 else folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "broken.mp4").write_bytes(b"\0" * 100)
    open_library(folder, weights=str(world.videos / "clip"), device="cpu", workers=1)
    return folder


@pytest.fixture
def folder(indexed, tmp_path) -> Path:
    return shutil.copytree(indexed, tmp_path / "videos")


@pytest.fixture
def library(folder) -> Library:
    return costl.library(folder, device="cpu")


@pytest.fixture
def cached(world, tmp_path) -> Library:
    return costl.library(world.copy(tmp_path).cache, device="cpu")


def test_a_folder_is_described(library, folder):
    assert len(library) == 8 and library.hours == pytest.approx(8 * 24 / 3600)
    assert repr(library) == f"{folder}: 8 videos, 0.1 hours, 1 that cannot be read; zero-shot ViT-B-32, clip"
    assert any("cannot be searched: broken.mp4" in message for message in library.messages())


def test_the_index_of_a_known_folder_is_read_once(library, folder, monkeypatch):
    reads: list[Path] = []

    def counted(file: h5py.Group, names: Sequence[str]) -> PackTable | None:
        reads.append(Path(file.filename))
        return read_table(file, names)

    monkeypatch.setattr("costl.pipeline.cache.index.read_table", counted)
    assert len(costl.library(folder, device="cpu")) == len(library)
    assert len(library.reopen()) == len(library)
    assert [path.name for path in reads] == ["library.h5"] * 2


def test_hits_are_inside_their_videos_and_best_first(library, folder):
    result = library.search(QUERY, top=20, min_score=0.0)
    assert result.query == QUERY and result.videos == 8 and 8 <= len(result.hits) <= 20
    assert [hit.score for hit in result.hits] == sorted((hit.score for hit in result.hits), reverse=True)
    for hit in result.hits:
        assert hit.video == folder / hit.name and hit.video.is_file()
        assert 0 <= hit.start_s < hit.end_s <= hit.duration_s == 24.0 and 0 <= hit.score <= 1
    assert "zero-shot ViT-B-32, clip" in repr(result)


def test_hits_of_one_video_do_not_overlap(library):
    by_video: dict[str, list[tuple[float, float]]] = {}
    for hit in library.search(QUERY, top=50, min_score=0.0).hits:
        by_video.setdefault(hit.name, []).append((hit.start_s, hit.end_s))
    assert max(map(len, by_video.values())) > 1
    for spans in by_video.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_the_best_moment_of_a_video_is_that_of_its_curve(library, folder, world):
    """Computed again from the cache of the folder, without search file and without scan."""
    features = CacheReader(folder / ".costl" / "library.h5")
    from costl.pipeline.encode.clip import load_encoder
    from costl.search.calibrate import ordinary_sentences

    encoder = load_encoder("ViT-B-32", str(world.videos / "clip"))
    vector = encoder.encode_text([QUERY])[0].sentence
    ordinary = np.stack([one.sentence for one in encoder.encode_text(ordinary_sentences())])
    best = {}
    for key in features.video_ids:
        curve = features.joint_vectors(key) @ (vector - ordinary.mean(0))
        best[key] = find_segments(curve, logit_scale=features.joint.logit_scale)[0]
    spans = {(segment.start * 2.0, segment.end * 2.0) for segment in best.values()}
    found = library.search(QUERY, top=100, min_score=0.0).hits
    assert spans <= {(hit.start_s, hit.end_s) for hit in found}


def test_a_cache_is_searched_like_a_folder(cached, world):
    result = cached.search(QUERY, min_score=0.0)
    assert result.videos == len(CacheReader(world.cache).video_ids)
    assert all(hit.video.is_file() and hit.name == hit.video.name for hit in result.hits)


def test_a_cache_of_nested_videos_has_the_names_of_the_folder(world, tmp_path):
    (tmp_path / "videos" / "2026").mkdir(parents=True)
    for name in ("top.mp4", "2026/deep.mp4"):
        shutil.copy(world.videos / "test_0000.mp4", tmp_path / "videos" / name)
    report = extract(tmp_path / "videos", out=tmp_path / "f.h5", weights=str(world.videos / "clip"), device="cpu", workers=1)
    library = costl.library(report.cache, device="cpu")
    hits = library.search(QUERY, top=100, min_score=0.0).hits
    assert {(hit.name, hit.video) for hit in hits} == {
        (name, (tmp_path / "videos" / name).resolve()) for name in ("top.mp4", "2026/deep.mp4")
    }
    within = library.search(QUERY, top=100, min_score=0.0, filters=Filters(within="2026/")).hits
    assert within and {hit.name for hit in within} == {"2026/deep.mp4"}


def test_a_cache_whose_videos_are_gone_is_searched(world, tmp_path):
    copy = world.copy(tmp_path)
    shutil.rmtree(copy.videos)
    weights = str(world.videos / "clip")
    assert costl.library(copy.cache, weights=weights, device="cpu").search(QUERY, min_score=0.0).hits


def test_thresholds_divide_the_hits(library):
    everything = library.search(QUERY, min_score=0.0, top=100)
    middle = everything.hits[len(everything.hits) // 2].score
    result = library.search(QUERY, min_score=middle, top=100)
    assert [*result.hits, *result.below] == list(everything.hits) and result.below
    assert all(hit.score >= middle for hit in result.hits) and all(hit.score < middle for hit in result.below)


def test_several_queries_give_what_each_gives_alone(library, monkeypatch):
    queries = [QUERY, "the blue star", "a small ring"]
    expected = [library.search(query) for query in queries]
    assert library.search_all(queries) == expected
    monkeypatch.setattr("costl.pipeline.library.best_videos.SIMILARITIES_AT_ONCE", 1)
    monkeypatch.setattr("costl.pipeline.library.best_videos._SENTENCES_AT_ONCE", 2)
    assert library.search_all(queries) == expected


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        (Filters(within="2021/"), lambda name: name.startswith("2021/")),
        (Filters(longer_than_s=23), lambda name: True),
        (Filters(after=date(2001, 1, 1), before=date(2001, 1, 2)), lambda name: name.startswith("2020/")),
    ],
    ids=["within", "longer", "date"],
)
def test_filters_choose_videos(folder, filters, passes):
    for path in (folder / "2020").iterdir():
        os.utime(path, (978_350_400, 978_350_400))  # noon of 2001-01-01 in UTC
    library = costl.library(folder, device="cpu")
    result = library.search(QUERY, filters=filters, min_score=0.0)
    assert result.hits and all(passes(hit.name) for hit in result.hits)
    assert result.videos == sum(map(passes, (name for name in library.files.files if name != "broken.mp4")))


def test_a_copy_is_one_hit_under_the_name_that_passes(folder):
    (folder / "copies").mkdir()
    source = next((folder / "2021").iterdir())
    shutil.copy(source, folder / "copies")
    library = costl.library(folder, device="cpu")
    assert len(library) == 8
    (name,) = {hit.name for hit in library.search(QUERY, filters=Filters(within="copies/"), min_score=0.0).hits}
    assert name == f"copies/{source.name}"


def test_a_search_during_an_update_says_what_may_be_missing(folder):
    with locked_cache(folder / ".costl" / "library.h5"):
        library = costl.library(folder, device="cpu")
        assert library.search(QUERY).videos == 8
    assert "another search is indexing" in library.messages()[-1]
    shutil.rmtree(folder / ".costl")
    with locked_cache(folder / ".costl" / "library.h5"), pytest.raises(BusyError):
        costl.library(folder, device="cpu")


def test_without_update_the_folder_is_not_looked_at(folder):
    shutil.rmtree(folder / "2021")
    assert len(costl.library(folder, device="cpu", update=False)) == 8
    shutil.rmtree(folder / ".costl")
    with pytest.raises(CacheError, match="not indexed yet"):
        costl.library(folder, update=False)


def test_threads_may_share_a_library(library):
    results = []
    threads = [threading.Thread(target=lambda: results.append(library.search(QUERY))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(result == results[0] for result in results)


def test_ordinary_sentences_are_compared_once(folder, library, monkeypatch):
    library.search(QUERY)
    monkeypatch.setattr("costl.pipeline.library.best_videos.LocalScan.highest", lambda *_: pytest.fail("compared again"))
    assert costl.library(folder, device="cpu").search(QUERY) == library.search(QUERY)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 damaged", b"x" * 100])
def test_damaged_levels_are_computed_again(folder, library, content):
    expected = library.search(QUERY)
    (ordinary,) = (folder / ".costl" / "vectors").glob("ordinary-*.npy")
    ordinary.write_bytes(content)
    (folder / ".costl" / "vectors" / "levels.npz").write_bytes(content)
    assert costl.library(folder, device="cpu").search(QUERY) == expected


@pytest.fixture
def frame(folder, tmp_path) -> Path:
    """A picture of the fourth clip of a video in the library."""
    path = tmp_path / "frame.png"
    video = next((folder / "2021").iterdir())
    Image.fromarray(frames_at(video, [7.0], height=64)[0]).save(path)
    return path


def test_a_frame_is_found_in_its_own_video(library, folder, frame):
    result = library.search(image=frame, min_score=0.0, top=100)
    best = result.hits[0]
    assert best.video == next((folder / "2021").iterdir()) and best.start_s <= 6 and best.end_s >= 8
    assert best.score > 0.99 and result.query == best.query == "frame.png"
    assert result.answered_by == "zero-shot ViT-B-32, clip" and result.videos == 8
    assert library.search(image=str(frame)).hits[0] == best


def test_moments_and_scores_of_an_image_are_those_of_its_cosines(library, folder, frame):
    """Computed again from the cache of the folder, without search file and without scan."""
    features = CacheReader(folder / ".costl" / "library.h5")
    clips = {key: features.joint_vectors(key).astype(np.float32) for key in features.video_ids}
    source = next(key for key, names in library.files.names().items() if names[0].startswith("2021/"))
    picture = clips[source][3]  # of that frame
    elsewhere = []
    for key, vectors in clips.items():  # of 12 clips each: all are in the sample of 100
        others = np.concatenate([clips[other] for other in clips if other != key])
        elsewhere += (vectors @ others.T).max(axis=1).tolist()
    expected = {}
    for key, vectors in clips.items():
        curve = vectors @ picture
        segment = find_segments(curve, logit_scale=features.joint.logit_scale / 2, max_overlap=0.0)[0]
        level = curve[segment.start : segment.end].max()
        expected[library.files.names()[key][0], segment.start * 2.0] = np.mean(np.array(elsewhere) < level)
    found = {(hit.name, hit.start_s): hit.score for hit in library.search(image=frame, min_score=0.0, top=100).hits}
    assert expected.keys() <= found.keys()
    for hit, share in expected.items():
        assert found[hit] == pytest.approx(share, abs=0.02)  # a rank of 96


def test_sentences_and_images_give_what_each_gives_alone(library, frame, tmp_path, monkeypatch):
    other = tmp_path / "other" / "frame.png"
    other.parent.mkdir()
    Image.new("RGB", (90, 50), "red").save(other)
    first, second = library.search_all([QUERY], images=[frame])
    assert first == library.search(QUERY) and second == library.search(image=frame)
    same_name = library.search_all(images=[frame, other, frame])
    assert [result.query for result in same_name] == [str(frame), str(other), str(frame)]
    assert [result.query for result in library.search_all(images=[frame, frame])] == ["frame.png"] * 2
    monkeypatch.setattr("costl.pipeline.library.best_videos.SIMILARITIES_AT_ONCE", 1)
    assert library.search_all([QUERY], images=[frame]) == [first, second]


def test_the_image_tower_is_loaded_once_and_only_for_images(library, frame, monkeypatch):
    library.search(QUERY)
    loads = []
    load = queries_module.load_image_encoder

    def count(*args, **options):
        loads.append(args)
        return load(*args, **options)

    monkeypatch.setattr(queries_module, "load_image_encoder", count)
    library.search(QUERY)
    assert not loads
    results = [library.search(image=frame), library.search(image=frame), library.reopen().search(image=frame)]
    assert results[0] == results[1] == results[2]
    assert len(loads) == 1


def test_one_video_is_searched_by_image(folder, frame):
    """There is no other video to compare with."""
    for path in [*folder.glob("*.mp4"), *folder.glob("2020/*"), *folder.glob("2022/*")]:
        path.unlink()
    for path in sorted((folder / "2021").iterdir())[1:]:
        path.unlink()
    library = costl.library(folder, device="cpu")
    assert len(library) == 1
    best = library.search(image=frame).hits[0]
    assert best.start_s <= 6 and best.end_s >= 8 and best.score == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "query is None and image is None, expected one of them"),
        ({"query": QUERY, "image": "frame.png"}, "expected one of them"),
        ({"image": "gone.png"}, "gone.png: no such file"),
        ({"image": 3}, "image is 3, expected a path"),
    ],
)
def test_wrong_images_are_refused_before_the_tower_is_loaded(library, monkeypatch, arguments, message):
    monkeypatch.setattr(queries_module, "load_image_encoder", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=message):
        library.search(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " "}, "no letter or digit"),
        ({"query": QUERY, "top": 0}, "top is 0, expected a number of moments"),
        ({"query": QUERY, "min_score": 1.5}, "min_score is 1.5, expected a score from 0 to 1"),
        ({"query": QUERY, "filters": Filters(within="nowhere/")}, "none of 8 videos passes the filters"),
    ],
)
def test_wrong_arguments_are_refused(library, arguments, message):
    with pytest.raises(UsageError, match=message):
        library.search(**arguments)


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("nothing", {}, UsageError, "no such folder"),
        ("", {}, UsageError, "path is '', expected a path"),
        ("empty", {}, UsageError, "no videos in it"),
        ("feats.h5", {"model": "ViT-L-14"}, UsageError, "is a cache, which was made with a model already"),
        ("text.h5", {}, CacheError, "text.h5"),
    ],
)
def test_what_is_no_library_is_refused(world, tmp_path, path, options, error, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.h5").write_text("text")
    shutil.copy(world.cache, tmp_path / "feats.h5")
    with pytest.raises(error, match=message):
        costl.library(tmp_path / path if path else "", **options)

"""The store of features extracts windows of a video: equal to the whole extraction, found again, and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import frame_times, make_video
from tiny_clip import write_clip_weights

from costl.pipeline import feature_store as module
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import VideoError
from costl.pipeline.extract import extract
from costl.pipeline.feature_store import FeatureStore
from costl.pipeline.grid import Grid
from costl.pipeline.progress import Progress
from costl.pipeline.videos import window_name

LATE_S = 3.25
QUERY = "a dog"
FIRST, MIDDLE, LAST = range(8), range(12, 20), range(24, 32)  # the video has 29 clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A video whose picture begins late and that ends within a clip, and the whole extraction of it."""
    folder = tmp_path_factory.mktemp("windows")
    write_clip_weights(folder / "clip")
    (folder / "videos").mkdir()
    make_video(folder / "videos" / "a.mp4", frame_times(255, 10.0, LATE_S), audio=True)
    row = {"qid": 1, "query": QUERY, "vid": "a", "duration": 28.75}
    (folder / "videos" / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    report = extract(folder / "videos", out=folder / "feats.h5", weights=str(folder / "clip"), fps=1.0, device="cpu", workers=1)
    assert report.exit_code == 0
    return folder


def store_in(home: Path, folder: Path, **options) -> FeatureStore:
    fingerprint = CacheReader(folder / "feats.h5").fingerprint
    weights = str(folder / "clip")
    settings = {"model": "ViT-B-32", "weights": weights, "device": "cpu", "owner": "m", "workers": 1} | options
    return FeatureStore(folder=home, fingerprint=fingerprint, **settings)


@pytest.fixture(scope="module")
def home(folder, tmp_path_factory) -> Path:
    """A store in which the three windows are."""
    home = tmp_path_factory.mktemp("home")
    store_in(home, folder).window_features(folder / "videos" / "a.mp4", [QUERY], [FIRST, MIDDLE, LAST])
    return home


@pytest.fixture
def copied(home, tmp_path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


@pytest.fixture
def extracted(monkeypatch) -> list[range]:
    """The windows that are decoded from here on."""
    windows: list[range] = []

    def extract_into(writer, videos, **options):
        windows.extend(videos[0].windows)
        return original(writer, videos, **options)

    original = module.extract_into
    monkeypatch.setattr(module, "extract_into", extract_into)
    return windows


@pytest.mark.parametrize("window", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
def test_windows_have_the_features_of_the_whole_video(folder, copied, extracted, window):
    whole = CacheReader(folder / "feats.h5")
    features = store_in(copied, folder).window_features(folder / "videos" / "a.mp4", [QUERY], [window])
    assert extracted == []
    inside = slice(window.start, window.stop)
    name = window_name(window)
    np.testing.assert_array_equal(features.tokens(name), whole.tokens("a")[inside])
    np.testing.assert_array_equal(features.joint_vectors(name), whole.joint_vectors("a")[inside])
    np.testing.assert_array_equal(features.times_s(name), whole.times_s("a")[inside])
    np.testing.assert_allclose(features.words(QUERY).sentence, whole.words(QUERY).sentence, atol=1e-5)
    duration_s = whole.row("a").duration_s
    assert features.grid(name).duration_s == pytest.approx(min(window.stop, duration_s) - window.start)
    assert features.row(name).picture_start_s == pytest.approx(max(0.0, LATE_S - window.start))
    features.verify(name)


def test_another_question_decodes_only_new_windows(folder, copied, extracted):
    store = store_in(copied, folder)
    other = range(16, 24)
    features = store.window_features(folder / "videos" / "a.mp4", ["a cat"], [MIDDLE, other])
    assert extracted == [other]
    assert set(features.video_ids) == {window_name(window) for window in (FIRST, MIDDLE, LAST, other)}
    assert features.words(QUERY).sentence.shape == features.words("a cat").sentence.shape


def test_a_window_before_the_picture_consists_of_its_first_frame(folder, tmp_path):
    features = store_in(tmp_path, folder).window_features(folder / "videos" / "a.mp4", [QUERY], [range(2)])
    whole = CacheReader(folder / "feats.h5")
    assert features.times_s(window_name(range(2))).tolist() == whole.times_s("a")[:2].tolist() == [LATE_S] * 2
    assert features.row(window_name(range(2))).picture_start_s == pytest.approx(2.0)


@pytest.mark.parametrize("stage", ["words", "frames", "videos"])
def test_a_stopped_extraction_loses_no_other_window(folder, copied, extracted, stage):
    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == stage:
            raise StoppedError

    video, other = folder / "videos" / "a.mp4", range(20, 24)
    with pytest.raises(StoppedError):
        store_in(copied, folder).window_features(video, ["a cat"], [other], progress=stop)
    extracted.clear()
    store_in(copied, folder).window_features(video, [QUERY], [FIRST, MIDDLE, LAST])
    assert extracted == []
    features = store_in(copied, folder).window_features(video, ["a cat"], [FIRST, other])
    assert extracted in ([], [other])  # it may have been stored before the stop
    assert len(features.video_ids) == 4


def test_windows_of_a_store_without_index_are_found(folder, copied, extracted):
    """As after a kill before the index is written."""
    (index,) = copied.glob("*/*.windows.h5")
    index.unlink()
    store_in(copied, folder).window_features(folder / "videos" / "a.mp4", [QUERY], [FIRST, LAST])
    assert extracted == []


def test_a_damaged_window_is_extracted_again(folder, copied, extracted):
    (part,) = copied.glob(f"*/*.parts/{window_name(MIDDLE)}.h5")
    part.write_bytes(b"damaged")
    features = store_in(copied, folder).window_features(folder / "videos" / "a.mp4", [QUERY], [FIRST, MIDDLE])
    assert extracted == [MIDDLE]
    features.verify(window_name(MIDDLE))


def test_windows_and_whole_videos_do_not_mix(folder, copied, extracted):
    store = store_in(copied, folder)
    features, name = store.features(folder / "videos" / "a.mp4", [QUERY])
    assert len(features.tokens(name)) == 29 and features.video_ids == ["a"]
    assert "a" not in store.window_features(folder / "videos" / "a.mp4", [QUERY], [FIRST]).video_ids


def test_windows_count_towards_the_limit(folder, copied):
    video = Path(shutil.copy(folder / "videos" / "a.mp4", copied / "b.mp4"))
    with open(video, "ab") as file:
        file.write(bytes(8))  # another content
    (windows,) = copied.glob("*/*.windows.h5")
    store_in(copied, folder, max_bytes=1).window_features(video, [QUERY], [FIRST])
    assert not windows.exists() and len(list(copied.glob("*/*.windows.h5"))) == 1


def test_a_window_after_the_end_of_the_video_is_refused(folder, copied):
    with pytest.raises(VideoError, match=r"a\.mp4: ends at 28\.\d s, before a part of it that is needed\."):
        store_in(copied, folder).window_features(folder / "videos" / "a.mp4", [QUERY], [FIRST, range(40, 48)])


def test_the_grid_of_a_window_has_its_clips():
    rng = np.random.default_rng(0)
    for fps, duration_s in zip(rng.choice([0.5, 1.0, 2.0, 29.97, 0.1], 500), rng.uniform(1, 5000, 500), strict=True):
        grid = Grid(float(fps), float(duration_s))
        start, stop = sorted(rng.integers(0, grid.clips + 1, 2).tolist())
        if start < stop:
            own = grid.of_window(range(start, stop))
            assert own.clips == stop - start
            assert start * grid.clip_s + own.duration_s <= duration_s + 1e-6
    assert Grid(1.0, 9.7).of_window(range(8, 10)).duration_s == pytest.approx(1.7)
    assert Grid(1.0, 9.7).clips_of([range(6, 20), range(1, 3), range(2, 4)]).tolist() == [1, 2, 3, 6, 7, 8, 9]
    assert list(map(len, map(Grid(1.0, 9.7).within, (range(8, 12), range(10, 12), range(2))))) == [2, 0, 2]

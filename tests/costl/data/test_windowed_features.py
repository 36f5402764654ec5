"""Windows of stored videos read like videos of their own, also where they consist of several pieces."""

from __future__ import annotations

import numpy as np
import pytest
from small_cache import write_small_cache

from costl.data.windowed_features import Piece, WindowedFeatures
from costl.pipeline.cache.reader import CacheReader

WINDOWS = {
    "inside": [Piece("v_b", range(1, 4))],
    "end": [Piece("v_b", range(3, 5))],
    "joined": [Piece("v_a", range(1, 3)), Piece("v_c", range(1)), Piece("v_b", range(2))],
}


@pytest.fixture
def features(tmp_path) -> CacheReader:
    return CacheReader(write_small_cache(tmp_path / "feats.h5"))


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("clips", [slice(None), slice(1, 2), slice(0, 99), [1, 0], range(2), (0, 1)], ids=repr)
def test_a_window_has_the_features_of_its_clips(features, name, clips):
    windowed = WindowedFeatures(features, WINDOWS)
    selected = clips if isinstance(clips, slice) else list(clips)
    tokens = np.concatenate([features.tokens(video)[list(of_video)] for video, of_video in WINDOWS[name]])
    joint = np.concatenate([features.joint_vectors(video)[list(of_video)] for video, of_video in WINDOWS[name]])
    np.testing.assert_array_equal(windowed.tokens(name, clips=clips), tokens[selected])
    np.testing.assert_array_equal(windowed.tokens(name, clips=clips, patches=False), tokens[selected][:, :1])
    np.testing.assert_array_equal(windowed.joint_vectors(name, clips=clips), joint[selected])
    assert (windowed.grid(name).clips, windowed.grid(name).duration_s) == (len(tokens), len(tokens) * 2.0)


def test_the_rest_is_that_of_the_cache(features):
    windowed = WindowedFeatures(features, WINDOWS)
    assert windowed.video_ids == list(WINDOWS)
    assert (windowed.fps, windowed.joint) == (features.fps, features.joint)
    np.testing.assert_array_equal(windowed.words("a dog").tokens, features.words("a dog").tokens)

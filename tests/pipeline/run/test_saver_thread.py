"""The tokens of a video are buffered in any order, in a file that a killed run does not leave behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from small_cache import small_contents

from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.encode.types import FrameFeatures
from costl.pipeline.errors import CacheError
from costl.pipeline.run.encoder_thread import Frame
from costl.pipeline.run.saver_thread import FeatureBuffer, SaverThread


def test_buffered_features_are_in_order_whatever_order_they_came_in(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float16)
    joint = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float16)
    times_s = np.arange(6) * 2.0 + 1
    buffer = FeatureBuffer(tmp_path)
    for index in (4, 5, 0, 1, 2, 3):
        buffer.add(Frame("a", index, times_s[index], FrameFeatures(tokens[index], joint[index])))
    assert len(buffer) == 6
    np.testing.assert_array_equal(buffer.features().tokens, tokens)
    np.testing.assert_array_equal(buffer.features().joint, joint)
    np.testing.assert_array_equal(buffer.times_s(), times_s)
    buffer.close()
    assert list(tmp_path.iterdir()) == [], "a killed run must leave nothing behind"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    saver = SaverThread(CacheWriter(tmp_path / "gone.h5", small_contents(), {}), {}, stop=threading.Event())
    saver.thread.start()
    features = FrameFeatures(np.zeros((5, 4), np.float16), np.zeros(3, np.float16))
    saver.add_features([Frame("a", 0, 0.0, features)])
    saver.finish()
    saver.thread.join()
    with pytest.raises(CacheError, match=r"gone\.h5\.parts: cannot be written"):
        raise saver.error

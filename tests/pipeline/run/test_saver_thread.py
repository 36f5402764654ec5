"""The tokens of a video are buffered in any order, in a file that a killed run does not leave behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from small_cache import small_contents

from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.errors import CacheError
from costl.pipeline.run.encoder_thread import Frame
from costl.pipeline.run.saver_thread import SaverThread, TokenBuffer


def test_buffered_tokens_are_in_order_whatever_order_they_came_in(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float16)
    times_s = np.arange(6) * 2.0 + 1
    buffer = TokenBuffer(tmp_path)
    for index in (4, 5, 0, 1, 2, 3):
        buffer.add(Frame("a", index, times_s[index], tokens[index]))
    assert len(buffer) == 6
    np.testing.assert_array_equal(buffer.tokens(), tokens)
    np.testing.assert_array_equal(buffer.times_s(), times_s)
    buffer.close()
    assert list(tmp_path.iterdir()) == [], "a killed run must leave nothing behind"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    saver = SaverThread(CacheWriter(tmp_path / "gone.h5", small_contents(), {}), {}, stop=threading.Event())
    saver.thread.start()
    saver.add_tokens([Frame("a", 0, 0.0, np.zeros((5, 4), np.float16))])
    saver.finish()
    saver.thread.join()
    with pytest.raises(CacheError, match=r"gone\.h5\.parts: cannot be written"):
        raise saver.error

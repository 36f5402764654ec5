"""The tokens of a video are buffered in any order, in a file that a killed run does not leave behind."""

from __future__ import annotations

import numpy as np
import pytest

from costl.pipeline.errors import CacheError
from costl.pipeline.run.batch_packer import FrameRun
from costl.pipeline.run.saver_thread import TokenBuffer


def test_buffered_tokens_are_in_order_whatever_order_they_came_in(tmp_path):
    tokens = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float16)
    times_s = np.arange(6) * 2.0 + 1
    buffer = TokenBuffer(tmp_path)
    for first, end in ((4, 6), (0, 3), (3, 4)):
        buffer.add(FrameRun("a", first, times_s[first:end], tokens[first:end]))
    assert buffer.frames == 6
    np.testing.assert_array_equal(buffer.tokens(), tokens)
    np.testing.assert_array_equal(buffer.times_s(), times_s)
    buffer.close()
    assert list(tmp_path.iterdir()) == [], "a killed run must leave nothing behind"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(CacheError, match="gone: cannot be written"):
        TokenBuffer(tmp_path / "gone")

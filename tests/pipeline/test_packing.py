"""Frames keep their order and their owner, whatever is packed together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packing import Gathered, Packer


def encode(images: torch.Tensor) -> np.ndarray:
    return images.reshape(len(images), 1, -1).numpy().astype(np.float16)


def images(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count).float()[:, None, None, None].expand(count, 3, 1, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=12), st.integers(1, 7))
def test_every_frame_comes_back_once_in_order_and_batches_are_full(chunks, batch):
    sizes: list[int] = []

    def counting(x):
        sizes.append(len(x))
        return encode(x)

    packer, given_back, sent, number = Packer(counting, batch=batch), {}, {}, 0
    for owner, count in chunks:
        sent.setdefault(owner, []).extend(range(number, number + count))
        for name, tokens in packer.add(owner, images(number, count)):
            given_back.setdefault(name, []).extend(tokens[:, 0, 0])
        number += count
    for name, tokens in packer.flush():
        given_back.setdefault(name, []).extend(tokens[:, 0, 0])
    assert given_back == sent
    assert set(sizes) <= {batch}
    assert len(sizes) == -(-number // batch)


def test_a_dropped_video_leaves_its_neighbours_alone():
    packer = Packer(encode, batch=10)
    for owner, start in (("a", 0), ("b", 3), ("a", 6)):
        assert list(packer.add(owner, images(start, 3))) == []
    packer.drop("a")
    [(owner, tokens)] = packer.flush()
    assert owner == "b" and tokens[:, 0, 0].tolist() == [3, 4, 5]


def test_gathered_tokens_are_what_was_added(tmp_path):
    gathered = Gathered(tmp_path)
    pieces = [np.random.default_rng(n).normal(size=(n, 5, 4)).astype(np.float16) for n in (3, 1, 2)]
    for piece in pieces:
        gathered.add_times(np.arange(len(piece)))
        gathered.add_tokens(piece)
    assert gathered.frames == 6
    np.testing.assert_array_equal(gathered.tokens(), np.concatenate(pieces))
    assert gathered.times_s().tolist() == [0, 1, 2, 0, 0, 1]
    gathered.close()
    assert list(tmp_path.iterdir()) == [], "a killed run must leave nothing behind"


def test_a_folder_that_takes_no_more_is_named(tmp_path):
    from pipeline.errors import CacheError

    with pytest.raises(CacheError, match="gone: cannot be written"):
        Gathered(tmp_path / "gone")

"""Frames keep their order and their owner, whatever is packed together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costl.pipeline.run.batches import Gathered, Packer, Stretch, with_tokens


def encode(images: torch.Tensor) -> np.ndarray:
    return images.reshape(len(images), 1, -1).numpy().astype(np.float16)


def stretch(owner: str, first: int, count: int, start: int) -> Stretch:
    """Frames whose pictures are numbers from `start` on."""
    images = torch.arange(start, start + count).float()[:, None, None, None].expand(count, 3, 1, 1)
    return Stretch(owner, first, np.arange(first, first + count) * 2.0, images)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=12), st.integers(1, 7), st.integers(0, 9)
)
def test_every_frame_comes_back_once_at_its_place_and_batches_are_full(chunks, batch, halved_at):
    sizes: list[int] = []
    packer, given_back, sent, number = Packer(batch=batch), {}, {}, 0

    def run(batches):
        for stretches in batches:
            if len(sizes) == halved_at and packer.batch > 1:
                packer.put_back(stretches)
                packer.batch //= 2
                continue
            images = packer.images(stretches)
            sizes.append(len(images))
            for piece in with_tokens(stretches, encode(images)):
                assert len(piece) == len(piece.values) and piece.times_s[0] == piece.first_index * 2.0
                assert piece.first_index == len(given_back.setdefault(piece.video_id, []))
                given_back[piece.video_id].extend(piece.values[:, 0, 0])

    for owner, count in chunks:
        packer.add(stretch(owner, len(sent.setdefault(owner, [])), count, number))
        sent[owner].extend(range(number, number + count))
        run(packer.full())
        number += count
    run(packer.rest())
    assert given_back == sent
    assert sizes == sorted(sizes, reverse=True) and set(sizes) <= {batch, *(batch >> n for n in range(1, 4))}
    if halved_at > len(sizes):
        assert sizes == [batch] * -(-number // batch)


def test_gathered_tokens_are_what_was_added_in_whatever_order(tmp_path):
    gathered, rng = Gathered(tmp_path), np.random.default_rng(0)
    tokens = rng.normal(size=(6, 5, 4)).astype(np.float16)
    times_s = np.arange(6) * 2.0 + 1
    for first, end in ((4, 6), (0, 3), (3, 4)):
        gathered.add(Stretch("a", first, times_s[first:end], tokens[first:end]))
    assert gathered.frames == 6
    np.testing.assert_array_equal(gathered.tokens(), tokens)
    np.testing.assert_array_equal(gathered.times_s(), times_s)
    gathered.close()
    assert list(tmp_path.iterdir()) == [], "a killed run must leave nothing behind"


def test_a_folder_that_takes_no_more_is_named(tmp_path):
    from costl.pipeline.errors import CacheError

    with pytest.raises(CacheError, match="gone: cannot be written"):
        Gathered(tmp_path / "gone")

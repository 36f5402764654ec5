"""Frames keep their order and their video, whatever is packed into one batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from costl.pipeline.run.batch_packer import BatchPacker, FrameRun, with_tokens


def encode(images: torch.Tensor) -> np.ndarray:
    return images.reshape(len(images), 1, -1).numpy().astype(np.float16)


def numbered_frames(video_id: str, first: int, count: int, start: int) -> FrameRun:
    """Frames whose images are numbers from `start` on."""
    images = torch.arange(start, start + count).float()[:, None, None, None].expand(count, 3, 1, 1)
    return FrameRun(video_id, first, np.arange(first, first + count) * 2.0, images)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=12), st.integers(1, 7), st.integers(0, 9)
)
def test_each_frame_is_encoded_once_and_batches_are_full(chunks, batch, halved_at):
    packer = BatchPacker(batch=batch)
    sizes: list[int] = []
    received: dict[str, list] = {}
    sent: dict[str, list] = {}
    number = 0

    def encode_all(batches):
        for frame_runs in batches:
            if len(sizes) == halved_at and packer.batch > 1:
                packer.put_back(frame_runs)
                packer.batch //= 2
                continue
            images = packer.stack_images(frame_runs)
            sizes.append(len(images))
            for encoded in with_tokens(frame_runs, encode(images)):
                assert len(encoded) == len(encoded.values) and encoded.times_s[0] == encoded.first_index * 2.0
                assert encoded.first_index == len(received.setdefault(encoded.video_id, []))
                received[encoded.video_id].extend(encoded.values[:, 0, 0])

    for video_id, count in chunks:
        packer.add(numbered_frames(video_id, len(sent.setdefault(video_id, [])), count, number))
        sent[video_id].extend(range(number, number + count))
        encode_all(packer.full_batches())
        number += count
    encode_all(packer.remaining_batches())
    assert received == sent
    assert sizes == sorted(sizes, reverse=True) and set(sizes) <= {batch, *(batch >> n for n in range(1, 4))}
    if halved_at > len(sizes):
        assert sizes == [batch] * -(-number // batch)

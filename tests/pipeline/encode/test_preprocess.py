"""Preprocessing: the region of a picture that CLIP sees, and a GPU that is not waited for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_waits import CUDA, Waits
from torch._subclasses.fake_tensor import FakeTensorMode

from costl.pipeline.encode.preprocess import Preprocess, prepare, visible_region


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (60, 100), (100, 60), (33, 240)])
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_the_visible_region_is_where_the_input_pixels_come_from(mode, height, width, size):
    preprocess = Preprocess(
        size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", resize_mode=mode
    )
    x = np.broadcast_to(np.linspace(40, 240, width), (height, width))
    y = np.broadcast_to(np.linspace(40, 240, height)[:, None], (height, width))
    ramp = torch.from_numpy(np.stack([x, y, y], -1).round().astype(np.uint8))[None]
    (red, green, _) = prepare(ramp, preprocess)[0].numpy() * 255
    left, top, width_share, height_share = visible_region(height, width, preprocess)
    real = (red > 30) & (green > 30)  # not padding
    shares = (red - 40) / 200, (green - 40) / 200
    for positions, begin, length, axis in ((shares[0], left, width_share, 1), (shares[1], top, height_share, 0)):
        count = red.shape[axis]
        expected = begin + (np.arange(count) + 0.5) / count * length
        expected = expected if axis else expected[:, None]
        np.testing.assert_allclose(positions[real], np.broadcast_to(expected, red.shape)[real], atol=0.03)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_preparing_frames_never_waits_for_a_gpu(mode):
    preprocess = Preprocess(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode=mode)
    with FakeTensorMode(), Waits() as waits:
        prepared = prepare(torch.empty(2, 20, 30, 3, dtype=torch.uint8, device=CUDA), preprocess)
    assert prepared.device.type == "cuda" and prepared.shape == (2, 3, 8, 8)
    assert not waits.count

"""Extraction as one writes it down first: decord, PIL, one video a batch, one process. What `costl extract` is raced with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from pipeline.clip import Clip
from pipeline.errors import CostlError
from pipeline.plain_decode import decord_numbers


@dataclass(frozen=True)
class PlainTask:
    """A video and the numbers of its wanted frames, as decord counts them."""

    path: Path
    indices: np.ndarray


def plain_task(path: Path, times_s: np.ndarray) -> PlainTask:
    """Looks up which frames are shown at `times_s`, so that the plain way need not. Raises what decord raises."""
    return PlainTask(path, decord_numbers(path, times_s))


def plain_extract(tasks: Mapping[str, PlainTask], clip: Clip, folder: Path) -> int:
    """Writes ID.npy, float16 [t 1+p c], for every video of `tasks`; -> how many frames that were.

    Everything by the libraries' own defaults; the network is `clip`'s, so that its speed is not part of the race.
    Raises CostlError for a video that decord cannot read.
    """
    p = clip.preprocess
    settings = PreprocessCfg(p.size, "RGB", p.mean, p.std, p.interpolation, p.resize_mode, p.fill_color)
    transform = image_transform_v2(settings, is_train=False)
    frames = 0
    for name, task in tasks.items():
        try:
            pictures = decord.VideoReader(str(task.path)).get_batch(task.indices).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise CostlError(f"{task.path.name}: decord alone cannot read it ({str(error)[:80]}).") from error
        images = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
        np.save(folder / f"{name}.npy", clip.encode_images(images.to(clip.device)))
        frames += len(pictures)
    return frames

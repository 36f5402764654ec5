"""The code whose speed is compared: extraction as `costl extract` runs it, its two stages separately, and a plain loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from costl.pipeline.bench.decode_entrants import decord_indices
from costl.pipeline.bench.measure import cost_of
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Event, Failed, decode_videos
from costl.pipeline.decode.worker import DecodeSettings
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.errors import CostlError
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.run.engine import extract_into
from costl.pipeline.videos import Video

MAX_BATCHES = 4  # of the frames that `encode_only` repeats


def extract_all(
    videos: Sequence[Video], encoder: CLIPEncoder, out: Path, *, fps: float, frame_options: FrameOptions, batch: int
) -> None:
    """Decodes, encodes and writes a cache, as `costl extract` does after loading CLIP. Raises CostlError for a failed video."""
    contents = Contents(
        fingerprint=encoder.fingerprint() | {"fps": fps}, fps=fps, patch_grid=encoder.patch_grid, joint=encoder.joint
    )
    with CacheWriter(out, contents, {}) as writer:
        for video in videos:
            writer.record_without_features(
                video.id, name=video.path.stem, status="pending", reason="not extracted yet."
            )
        writer.write_index()
        rows = extract_into(
            writer,
            videos,
            encoders=[encoder],
            fps=fps,
            frame_options=frame_options,
            run_options=RunOptions(batch=batch),
            report_progress=lambda _: None,
        )
    failures = [row.reason for row in rows if not row.ok]
    if failures:
        raise CostlError(failures[0])


def decode_only(videos: Sequence[Video], *, fps: float, frame_options: FrameOptions, processes: int) -> None:
    """Decodes in extraction's own processes and drops every chunk at once. Raises CostlError for a failed video."""
    for event in decode_events(videos, fps=fps, frame_options=frame_options, processes=processes):
        if isinstance(event, Chunk):
            event.release()
        elif isinstance(event, Failed):
            raise CostlError(event.reason)


def decode_events(
    videos: Sequence[Video], *, fps: float, frame_options: FrameOptions, processes: int
) -> Iterator[Event]:
    """The events of extraction's own decode processes. The caller must release every chunk."""
    with decode_videos(videos, DecodeSettings(fps=fps, frame_options=frame_options), processes=processes) as events:
        yield from events


def encode_only(encoder: CLIPEncoder, batches: Sequence[Tensor], *, min_s: float) -> int:
    """Encodes prepared batches again and again for at least `min_s` seconds; returns the number of frames."""

    def encode_batches() -> int:
        return sum(len(encoder.encode_images(images)) for images in batches)

    frames = 0
    spent_s = 0.0
    while spent_s < min_s:
        encoded, cost = cost_of(encode_batches)
        frames += encoded
        spent_s += cost.wall_s
    return frames


def full_batches(images: Sequence[Tensor], batch: int) -> list[Tensor]:
    """At most `MAX_BATCHES` batches of exactly `batch` frames. Starts again with the first frame if there are too few."""
    frames = torch.cat(list(images))
    count = max(1, min(MAX_BATCHES, len(frames) // batch))
    indices = torch.arange(count * batch, device=frames.device) % len(frames)
    return list(frames[indices].split(batch))


@dataclass(frozen=True)
class PlainTask:
    """A video, and decord's numbers of the frames to extract."""

    path: Path
    indices: np.ndarray


def plain_task(path: Path, times_s: np.ndarray) -> PlainTask:
    """Looks up the frames on screen at `times_s` [t], so that the plain loop need not. Raises decord's errors."""
    return PlainTask(path, decord_indices(path, times_s))


def plain_extract(tasks: Mapping[str, PlainTask], encoder: CLIPEncoder, folder: Path) -> int:
    """A plain loop in one process, with decord, PIL and one batch a video; returns the number of frames.

    Writes ID.npy, float16 [t 1+p c], for every video of `tasks`. All libraries run with their defaults. The network is
    that of `encoder`, so that its speed makes no difference. Raises CostlError for a video that decord cannot read.
    """
    preprocess = encoder.preprocess
    settings = PreprocessCfg(
        preprocess.size,
        "RGB",
        preprocess.mean,
        preprocess.std,
        preprocess.interpolation,
        preprocess.resize_mode,
        preprocess.fill_color,
    )
    transform = image_transform_v2(settings, is_train=False)
    frames = 0
    for video_id, task in tasks.items():
        try:
            pixels = decord.VideoReader(str(task.path)).get_batch(task.indices).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise CostlError(f"{task.path.name}: decord alone cannot read it ({str(error)[:80]}).") from error
        images = torch.stack([transform(Image.fromarray(frame)) for frame in pixels])
        np.save(folder / f"{video_id}.npy", encoder.encode_images(images.to(encoder.device)))
        frames += len(pixels)
    return frames

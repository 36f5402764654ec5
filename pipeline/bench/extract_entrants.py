"""The code whose speed is compared: extraction as `costl extract` runs it, decoding alone, and a plain loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Failed, decode_videos
from costl.pipeline.decode.worker import DecodeSettings
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.errors import CostlError
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.processes import cpu_cores
from costl.pipeline.progress import ProgressCallback
from costl.pipeline.run.engine import cache_contents, extract_into
from costl.pipeline.videos import Video


def extract_all(
    videos: Sequence[Video],
    encoder: CLIPEncoder,
    out: Path,
    *,
    fps: float,
    frame_options: FrameOptions,
    run_options: RunOptions | None = None,
    report_progress: ProgressCallback = lambda _: None,
) -> None:
    """Decodes, encodes and writes a cache, as `costl extract` does after loading CLIP. Raises CostlError for a failed video."""
    fingerprint = encoder.fingerprint() | {"fps": fps}
    contents = cache_contents(encoder, fingerprint)
    with CacheWriter(out, contents, {}) as writer:
        writer.write_index()
        rows = extract_into(
            writer,
            videos,
            encoders=[encoder],
            fps=fps,
            frame_options=frame_options,
            run_options=run_options,
            report_progress=report_progress,
        )
    failures = [row.reason for row in rows if not row.ok]
    if failures:
        raise CostlError(failures[0])


def decode_all(
    videos: Sequence[Video],
    *,
    fps: float,
    frame_options: FrameOptions,
    use: Callable[[Chunk], object] = lambda chunk: None,
) -> None:
    """Decodes in extraction's own processes and calls `use` with every chunk. Raises CostlError for a failed video."""
    settings = DecodeSettings(fps=fps, frame_options=frame_options)
    with decode_videos(videos, settings, processes=cpu_cores()) as events:
        for event in events:
            if isinstance(event, Chunk):
                use(event)
                event.release()
            elif isinstance(event, Failed):
                raise CostlError(event.reason)


def encode_all(batches: Iterable[Tensor], encoder: CLIPEncoder) -> None:
    """Encodes prepared batches as extraction does: each is started before the features of the one before are fetched."""
    started: deque[Callable[[], object]] = deque()
    for batch in batches:
        started.append(encoder.start(batch))
        if len(started) > 1:
            fetch = started.popleft()
            fetch()
    for fetch in started:
        fetch()


def plain_extract(
    videos: Sequence[Video], indices: Mapping[str, np.ndarray], encoder: CLIPEncoder, folder: Path
) -> None:
    """A plain loop in one process, with decord, PIL and one batch a video, that writes float16 [t 1+p c] to ID.npy.

    `indices`: decord's numbers [t] of the frames of each video. All libraries run with their defaults. The network is that
    of `encoder`, so that its speed makes no difference.
    """
    import decord

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
    for video in videos:
        pixels = decord.VideoReader(str(video.path)).get_batch(indices[video.id]).asnumpy()
        images = torch.stack([transform(Image.fromarray(frame)) for frame in pixels])
        np.save(folder / f"{video.id}.npy", encoder.encode_images(images.to(encoder.device)).tokens)

"""Extraction as one writes it down first: decord, PIL, one video a batch, one process. What `costl extract` is raced with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decord
import numpy as np
import torch
from jaxtyping import Float
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from costl.pipeline.bench.decode_entrants import decord_numbers
from costl.pipeline.bench.measure import cost_of
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.decode.pool import Chunk, Event, Failed, decode_videos
from costl.pipeline.decode.worker import Job
from costl.pipeline.encode.clip import Clip
from costl.pipeline.errors import CostlError
from costl.pipeline.options import Effort, How
from costl.pipeline.run.engine import extract_into
from costl.pipeline.videos import Video


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


MOST_BATCHES = 4  # of the frames that CLIP alone is given, over and over


def decode_alone(videos: Sequence[Video], *, fps: float, how: How, processes: int) -> None:
    """The decode half: extraction's own processes, every chunk let go at once. Raises CostlError for a failure."""
    for event in decode_events(videos, fps, how, processes):
        if isinstance(event, Chunk):
            event.release()
        elif isinstance(event, Failed):
            raise CostlError(event.reason)


def encode_alone(clip: Clip, batches: Sequence[Tensor], *, least_s: float) -> int:
    """The CLIP half: prepared batches through the network, over and over; -> how many frames."""
    frames = 0

    def once() -> int:
        return sum(len(clip.encode_images(images)) for images in batches)

    spent_s = 0.0
    while spent_s < least_s:
        done, cost = cost_of(once)
        frames, spent_s = frames + done, spent_s + cost.wall_s
    return frames


def extract_all(videos: Sequence[Video], clip: Clip, out: Path, *, fps: float, how: How, batch: int) -> None:
    """What `costl extract` does once CLIP is loaded: decode, encode and write a cache. Raises CostlError for a failure."""
    contents = Contents(
        fingerprint=clip.fingerprint() | {"fps": fps}, fps=fps, patch_grid=clip.patch_grid, joint=clip.joint
    )
    with CacheWriter(out, contents, {}) as writer:
        for video in videos:
            writer.note(video.id, name=video.path.stem, status="pending", reason="not extracted yet.")
        writer.write_index()
        effort = Effort(batch=batch)
        rows = extract_into(writer, videos, clips=[clip], fps=fps, how=how, effort=effort, tell=lambda _: None)
    bad = [row.reason for row in rows if not row.ok]
    if bad:
        raise CostlError(bad[0])


def decode_events(videos: Sequence[Video], fps: float, how: How, processes: int) -> Iterator[Event]:
    """What extraction's own decode processes give for these videos; every chunk must be released."""
    jobs = [Job(video.id, str(video.path), fps, how) for video in videos]
    with decode_videos(jobs, processes=processes) as events:
        yield from events


def full_batches(images: Sequence[Tensor], batch: int) -> list[Tensor]:
    """Batches of exactly this size, as extraction makes them; the frames from the start again where they run out."""
    together = torch.cat(list(images))
    count = max(1, min(MOST_BATCHES, len(together) // batch))
    places = torch.arange(count * batch, device=together.device) % len(together)
    return list(together[places].split(batch))


class Imitated:
    """What extraction asks of a `costl.pipeline.encode.clip.Clip`, without a network: n frames take n / `rate` seconds.

    Its tokens are noise in the shape of `like`'s. It measures how decoding, encoding and writing overlap, nothing else.
    """

    name = "imitated accelerator (sleeps, no network)"
    precision = "fp32"

    def __init__(self, like: Clip, *, rate: float):
        self.rate, self._busy_until_s = rate, 0.0
        self.device = torch.device("cpu")
        self.patch_grid, self.joint, self.width = like.patch_grid, like.joint, like.width
        rows, columns = like.patch_grid
        shape = (1 + rows * columns, like.width)
        self._tokens = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    def fingerprint(self) -> dict[str, str]:
        """Its name and rate: a cache of it is never mixed with another."""
        return {"model": self.name, "rate": repr(self.rate)}

    def prepare(self, pixels: np.ndarray | Tensor) -> Float[Tensor, "n 3 y x"]:
        """Copies the frames once, as on the way to a device, and forgets them: that device would do the resize."""
        return torch.zeros(len(np.array(pixels)), 3, 1, 1)

    def start(self, images: Float[Tensor, "n 3 y x"]) -> Callable[[], np.ndarray]:
        """Begins a batch: it is done n / rate seconds after the one before it, or after now."""
        done_s = self._busy_until_s = max(self._busy_until_s, time.monotonic()) + len(images) / self.rate

        def finish() -> np.ndarray:
            time.sleep(max(0.0, done_s - time.monotonic()))
            return np.repeat(self._tokens[None], len(images), axis=0)

        return finish

    def encode_images(self, images: Float[Tensor, "n 3 y x"]) -> np.ndarray:
        """n / rate seconds later, float16 [n 1+p c]."""
        return self.start(images)()

    def tokens(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """Both steps at once."""
        return self.encode_images(self.prepare(pixels))


def as_clip(imitated: Imitated) -> Clip:
    """For signatures that name the class: an `Imitated` stands wherever extraction takes a Clip."""
    stand_in: Any = imitated
    return stand_in  # type: ignore[no-any-return]

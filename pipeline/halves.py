"""Extraction, and each of its halves alone, as its speed is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.cache import CacheWriter, Contents
from pipeline.clip import Clip
from pipeline.decoding import Job
from pipeline.effort import Effort
from pipeline.encoding import extract_into
from pipeline.errors import CostlError
from pipeline.how import How
from pipeline.measure import cost_of
from pipeline.videos import Video
from pipeline.workers import Chunk, Event, Failed, decode_videos

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

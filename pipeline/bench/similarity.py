"""What a cheaper way to make frames does to the features: both ways on the same videos, token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costl.pipeline.decode.backends import open_video
from costl.pipeline.encode.clip import Clip
from costl.pipeline.grid import Grid
from costl.pipeline.options import How


@dataclass(frozen=True)
class Similarity:
    """Features made in one way beside those of frames at the clips' centres resized on the device, over all tokens.

    `error`: length of the difference over length of the reference; `cosine`: mean over the frame tokens; `apart_s`: mean
    seconds between the frames. `per_cpu_s` and `usual_per_cpu_s`: frames decoded a CPU second, this way and the usual.
    """

    how: How
    frames: int
    error: float
    cosine: float
    apart_s: float
    per_cpu_s: float
    usual_per_cpu_s: float


def similarity(videos: Sequence[Path], clip: Clip, *, fps: float, decoder: str = "pyav") -> list[Similarity]:
    """One row for --sampling cheapest, --resize decoder, and both. Decodes in this process; meant for few videos."""
    usual = How(decoder)
    target = clip.preprocess.target
    ways = [replace(usual, sampling="cheapest"), replace(usual, resize_to=target), How(decoder, "cheapest", target)]
    with_usual = _made(videos, clip, usual, fps)
    return [_compare(way, _made(videos, clip, way, fps), with_usual) for way in ways]


@dataclass(frozen=True)
class _Made:
    tokens: np.ndarray  # [t 1+p c]
    times_s: np.ndarray
    cpu_s: float


def _made(videos: Sequence[Path], clip: Clip, how: How, fps: float) -> _Made:
    tokens, times, cpu_s = [], [], 0.0
    for path in videos:
        begin_s = time.process_time()
        with open_video(path, how) as video:
            grid = Grid(fps, video.duration_s)
            wanted_s = video.cheapest_s(grid) if how.sampling == "cheapest" else grid.centres_s()
            for frames in video.sample(wanted_s):
                cpu_s += time.process_time() - begin_s
                tokens.append(clip.tokens(frames.pixels).astype(np.float32))
                times.append(frames.times_s)
                begin_s = time.process_time()
    return _Made(np.concatenate(tokens), np.concatenate(times), cpu_s)


def _compare(how: How, made: _Made, usual: _Made) -> Similarity:
    ours, theirs = made.tokens[:, 0], usual.tokens[:, 0]
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    return Similarity(
        how=how,
        frames=len(ours),
        error=float(np.linalg.norm(made.tokens - usual.tokens) / np.linalg.norm(usual.tokens)),
        cosine=float(((ours * theirs).sum(-1) / lengths).mean()),
        apart_s=float(np.abs(made.times_s - usual.times_s).mean()),
        per_cpu_s=len(ours) / made.cpu_s,
        usual_per_cpu_s=len(ours) / usual.cpu_s,
    )

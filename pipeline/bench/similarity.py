"""How features change with cheaper frames: compares both kinds on the same videos, token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costl.pipeline.decode.backends import open_video
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.grid import Grid
from costl.pipeline.options import FrameOptions


@dataclass(frozen=True)
class Similarity:
    """Features with `frame_options` compared with the reference: frames at clip centres, resized on the device.

    `error`: norm of the difference of all tokens over the norm of the reference. `cosine`: mean over the frame tokens.
    `shift_s`: mean seconds between the frames. `frames_per_cpu_s` and `reference_frames_per_cpu_s`: decoded frames per
    CPU second.
    """

    frame_options: FrameOptions
    frames: int
    error: float
    cosine: float
    shift_s: float
    frames_per_cpu_s: float
    reference_frames_per_cpu_s: float


def measure_similarity(
    videos: Sequence[Path], encoder: CLIPEncoder, *, fps: float, decoder: str = "pyav"
) -> list[Similarity]:
    """One row each for --sampling cheapest, --resize decoder, and both. Decodes in this process; meant for few videos."""
    default = FrameOptions(decoder)
    target = encoder.preprocess.resize_target
    cheapest = replace(default, sampling="cheapest")
    resized = replace(default, resize_to=target)
    both = FrameOptions(decoder, "cheapest", target)
    reference = _encode(videos, encoder, default, fps)
    return [
        _compare(options, _encode(videos, encoder, options, fps), reference) for options in (cheapest, resized, both)
    ]


@dataclass(frozen=True)
class _Features:
    tokens: np.ndarray  # [t 1+p c]
    times_s: np.ndarray  # [t]
    cpu_s: float  # of decoding


def _encode(videos: Sequence[Path], encoder: CLIPEncoder, frame_options: FrameOptions, fps: float) -> _Features:
    tokens: list[np.ndarray] = []
    times_s: list[np.ndarray] = []
    cpu_s = 0.0
    for path in videos:
        start_s = time.process_time()
        with open_video(path, frame_options) as video:
            grid = Grid(fps, video.duration_s)
            cheapest = frame_options.sampling == "cheapest"
            requested_s = video.cheapest_times_s(grid) if cheapest else grid.centres_s()
            for frames in video.sample(requested_s):
                cpu_s += time.process_time() - start_s
                tokens.append(encoder.tokens(frames.pixels).astype(np.float32))
                times_s.append(frames.times_s)
                start_s = time.process_time()
    return _Features(np.concatenate(tokens), np.concatenate(times_s), cpu_s)


def _compare(frame_options: FrameOptions, features: _Features, reference: _Features) -> Similarity:
    frame = features.tokens[:, 0]
    reference_frame = reference.tokens[:, 0]
    norms = np.linalg.norm(frame, axis=-1) * np.linalg.norm(reference_frame, axis=-1)
    difference = np.linalg.norm(features.tokens - reference.tokens)
    return Similarity(
        frame_options=frame_options,
        frames=len(frame),
        error=float(difference / np.linalg.norm(reference.tokens)),
        cosine=float(((frame * reference_frame).sum(-1) / norms).mean()),
        shift_s=float(np.abs(features.times_s - reference.times_s).mean()),
        frames_per_cpu_s=len(frame) / features.cpu_s,
        reference_frames_per_cpu_s=len(frame) / reference.cpu_s,
    )

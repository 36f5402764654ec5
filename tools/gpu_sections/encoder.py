"""CLIP on a GPU: the tokens of each precision, and a batch that does not fit into the memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from costl.pipeline.bench.extract import random_network
from costl.pipeline.bench.extract_entrants import encode_all, extract_all
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.encode.clip import CLIPEncoder
from costl.pipeline.encode.types import FrameFeatures
from costl.pipeline.encode.weights import Source, build_network, find_source
from costl.pipeline.options import FrameOptions, RunOptions
from costl.pipeline.run.encoder_thread import usual_batch
from costl.pipeline.videos import Video
from costl.pipeline.world.write_world import TINY_CLIP
from gpu_sections.common import Setup, relative_distance
from gpu_sections.extraction import render_videos

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
# The largest distance of tokens from float32. On a GPU, convolutions of float32 compute in TF32 by default.
LIMITS = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 4e-2}
FRAMES, SPEED_BATCHES = 16, 6
FITTING = 0.6  # of the memory beyond the weights that an extraction needs


def tokens(setup: Setup) -> None:
    """The tokens of each model in each precision, compared with float32 on the CPU."""
    setup.table("model", "precision", "tokens", "worst frame", "joint vectors", "frames/s", "peak MB")
    results = []
    for model in models(setup):
        with setup.attempt(model):
            results += list(_tokens_of(setup, model))
    setup.checks(results)


def models(setup: Setup) -> tuple[str, ...]:
    """The names of the models that are measured."""
    return (TINY_CLIP.name,) if setup.tiny else MODELS


def network_of(model: str) -> tuple[Any, Source]:
    """The network of a model, with random weights unless it is the small CLIP."""
    if model != TINY_CLIP.name:
        return random_network(model)
    source = find_source(model, str(TINY_CLIP))
    return build_network(source), source


def _tokens_of(setup: Setup, model: str) -> Iterator[tuple[str, bool]]:
    network, source = network_of(model)
    reference = CLIPEncoder(copy.deepcopy(network), source=source, device=torch.device("cpu"), precision="fp32")
    pixels = _pictures(2 if setup.tiny else FRAMES, *reference.image_size)
    expected = _tensors(reference.encode(pixels))
    for precision, limit in LIMITS.items():
        encoder = CLIPEncoder(copy.deepcopy(network), source=source, device=setup.device, precision=precision)
        tokens, joint = _tensors(encoder.encode(pixels))
        distance = relative_distance(tokens, expected[0])
        worst = max(map(relative_distance, tokens, expected[0]))
        speed, peak = _speed(setup, encoder, pixels)
        of_joint = relative_distance(joint, expected[1])
        setup.row(model, precision, *(f"{x:.1e}" for x in (distance, worst, of_joint)), f"{speed:.0f}", f"{peak / 1e6:.0f}")
        yield f"{model}, {precision}: tokens and joint vectors differ by less than {limit:g}", max(distance, of_joint) < limit


def _speed(setup: Setup, encoder: CLIPEncoder, pixels: np.ndarray) -> tuple[float, float]:
    """Frames a second, and peak memory in bytes."""
    batch = 1 if setup.tiny else usual_batch(encoder)
    images = encoder.prepare(np.resize(pixels, (batch, *pixels.shape[1:])))
    peak = setup.peak_bytes(lambda: encode_all([images] * 2, encoder))
    batches = 1 if setup.tiny else SPEED_BATCHES
    return batches * batch / setup.seconds(lambda: encode_all([images] * batches, encoder)), peak


def _pictures(count: int, height: int, width: int) -> np.ndarray:
    """uint8 [n h w 3]: large random patches of colour, with noise."""
    rng = np.random.default_rng(0)
    side = -(-max(height, width) // 7)
    patches = rng.integers(0, 200, (count, 7, 7, 3)).repeat(side, 1).repeat(side, 2)[:, :height, :width]
    return (patches + rng.integers(0, 56, patches.shape)).astype(np.uint8)


def _tensors(features: FrameFeatures) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(values)).float() for values in features]


def full_memory(setup: Setup) -> None:
    """An extraction that has 60 % of the memory that it needs."""
    videos = render_videos(setup, copies=2)
    network, source = network_of(models(setup)[0])
    encoder = CLIPEncoder(network, source=source, device=setup.device, precision="fp16" if setup.on_gpu else "fp32")
    extract = _extraction(setup, encoder, videos, batch=8 if setup.tiny else 1024)
    weights = torch.cuda.memory_allocated(setup.device) if setup.on_gpu else 0
    peak = setup.peak_bytes(lambda: extract("whole"))
    limit = weights + FITTING * (peak - weights)
    with _memory_limit(setup, limit):
        messages = extract("limited")
    setup.note(f"Peak {peak / 1e6:.0f} MB, then limited to {limit / 1e6:.0f} MB:")
    setup.file.write("".join(f"- {message}\n" for message in messages))
    distance = max(_distances(setup.folder / "whole.h5", setup.folder / "limited.h5"))
    setup.checks(
        [
            ("the batch was halved", any("is full" in message for message in messages)),
            (f"tokens of all frames differ by {distance:.1e}, less than {LIMITS['fp16']:g}", distance < LIMITS["fp16"]),
        ]
    )


def _extraction(
    setup: Setup, encoder: CLIPEncoder, videos: list[Video], *, batch: int
) -> Callable[[str], list[str]]:
    """A function that extracts all frames into a new cache of this name, and returns the messages."""

    def extract(name: str) -> list[str]:
        messages: list[str] = []
        crowded = name == "limited" and not setup.on_gpu
        extract_all(
            videos,
            CrowdedEncoder(encoder, most=batch // 2) if crowded else encoder,
            setup.folder / f"{name}.h5",
            fps=1.0 if setup.tiny else 30.0,
            frame_options=FrameOptions("pyav"),
            run_options=RunOptions(batch=batch, workers=1 if setup.tiny else None),
            report_progress=lambda progress: messages.append(progress.message),
        )
        return [message for message in messages if message]

    return extract


class CrowdedEncoder(CLIPEncoder):
    """A stand-in on a CPU for a GPU that has no memory for more than `most` frames at once."""

    def __init__(self, like: CLIPEncoder, *, most: int):
        vars(self).update(vars(like))
        self._most = most

    def start(self, images: torch.Tensor) -> Callable[[], FrameFeatures]:
        """Starts a batch, as CLIPEncoder does. Raises torch's error for a larger one."""
        if len(images) > self._most:
            raise torch.OutOfMemoryError("no memory")
        return super().start(images)


@contextmanager
def _memory_limit(setup: Setup, limit: float) -> Iterator[None]:
    """Within the block, torch may not reserve more than `limit` bytes on a GPU."""
    if not setup.on_gpu:
        yield
        return
    total = torch.cuda.get_device_properties(setup.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / total, setup.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setup.device)


def _distances(first: Path, second: Path) -> Iterator[float]:
    """The distance of the tokens of each video in two caches."""
    caches = CacheReader(first), CacheReader(second)
    for row in caches[0].rows:
        tokens = [torch.from_numpy(np.array(cache.tokens(row.name))).float() for cache in caches]
        yield relative_distance(*tokens)

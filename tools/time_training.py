"""Times a training step in each precision and compiled, and reading with several workers. The defaults of `train` are from it.

    python tools/time_training.py step --size qvhighlights --steps 8
    python tools/time_training.py read --folder /data/scratch --videos 300 --workers 0 2 4

`step` times the model on synthetic features: seconds of the first step (with compilation) and the median of the others.
`read` writes a cache of synthetic features (videos of 75 clips with 50 tokens of 768 channels, 5.8 MB) and times one epoch
of batches of 32, cold (after its files are dropped from the page cache) and warm.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from costl.config import Config, load_config
from costl.data.annotations import Query
from costl.data.batch import Batch, collate
from costl.data.loader import Loader
from costl.data.sampler import plan_epoch
from costl.model.build import build_model
from costl.pipeline.cache.index import Contents
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.cache.writer import CacheWriter
from costl.pipeline.device import pick_device
from costl.pipeline.encode.types import JointSpace, SentenceTokens
from costl.pipeline.grid import Grid
from costl.training.compiling import compile_layers
from costl.training.objective import total_loss
from costl.training.precision import autocast, make_scaler

BATCH, WORDS, SENTENCE_WIDTH = 32, 12, 512
SIZES = {"tiny": (8, 28, 64, 256), "qvhighlights": (32, 75, 768, 1024)}  # videos, clips, channels, word channels


class SyntheticFeatures:
    """Random features with the interface and the sizes of a cache."""

    fps, patch_grid = 0.5, (7, 7)

    def __init__(self, clips: int, channels: int, word_channels: int):
        self._clips = clips
        self._channels = channels
        self._word_channels = word_channels
        self._rng = np.random.default_rng(0)
        ones = np.ones(channels, np.float32)
        space = self._rng.normal(size=(channels, SENTENCE_WIDTH)).astype(np.float32) / channels**0.5
        self.joint = JointSpace(ones, 0 * ones, 1e-5, space, 100.0)

    def grid(self, video_id: str) -> Grid:
        """The same for every video."""
        return Grid(self.fps, self._clips / self.fps)

    def tokens(self, video_id: str, *, clips: slice = slice(None), patches: bool = True) -> np.ndarray:
        """[t 50 c], or without patches [t 1 c]."""
        shape = (self._clips, 50 if patches else 1, self._channels)
        return self._rng.normal(size=shape).astype(np.float16)[clips]

    def words(self, query: str) -> SentenceTokens:
        """Twelve random words."""
        tokens = self._rng.normal(size=(WORDS, self._word_channels)).astype(np.float16)
        return SentenceTokens(tokens, np.full(SENTENCE_WIDTH, SENTENCE_WIDTH**-0.5, np.float32))


def synthetic_queries(count: int, videos: int, duration_s: float) -> list[Query]:
    """`count` queries with labels, about the videos in turn."""
    labels = {"windows": ((2.0, 12.0),), "clip_ids": (1, 2, 3), "saliency": ((3, 3, 3), (2, 2, 2), (4, 4, 4))}
    return [Query(i, f"text {i}", f"v{i % videos:05d}", duration_s, **labels) for i in range(count)]


def time_steps(
    config: Config, batch: Batch, features: SyntheticFeatures, device: torch.device, *, precision: str, steps: int
) -> str:
    """Times training steps and returns a line of the table."""
    torch.manual_seed(0)
    joint = {f.name: torch.as_tensor(getattr(features.joint, f.name)) for f in fields(features.joint)}
    sizes = {"encoder_width": joint["projection"].shape[0], "word_width": batch.words.shape[-1]}
    model = build_model(config, patch_grid=features.patch_grid, joint=joint, **sizes).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    dtype = getattr(torch, precision)
    scaler = make_scaler(device, dtype)
    step_s: list[float] = []
    losses: list[float] = []
    started = time.perf_counter()
    if config.train.compile:
        compile_layers(model, device)
    for _ in range(steps):
        with autocast(device, dtype):
            outputs = model(**batch.model_inputs())
        total, _ = total_loss(outputs, batch, config.loss)
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(total.detach()))  # waits for the device
        step_s.append(time.perf_counter() - started)
        started = time.perf_counter()
    median_s = statistics.median(step_s[1:])
    mode = "compiled" if config.train.compile else "eager"
    return f"{precision:10}{mode:10}{step_s[0]:12.2f}{median_s:12.3f}   " + " ".join(f"{loss:.3f}" for loss in losses[:4])


def step(arguments: argparse.Namespace) -> None:
    """Prints a line for every precision that the device supports, then one for compiled float32."""
    videos, *sizes = SIZES[arguments.size]
    features = SyntheticFeatures(*sizes)
    device = pick_device(arguments.device)
    queries = synthetic_queries(BATCH, videos, features.grid("").duration_s)
    wrong = [(i, (i + 1) % BATCH) for i in range(videos)]
    batch = collate(queries, features, patches=True, negative_pairs=wrong).to(device)
    print(f"{'':20}{'first, s':>12}{'median, s':>12}   losses")
    cases = [("float32", False), ("bfloat16", False), ("float16", False), ("float32", True)]
    for precision, compiled in cases:
        if precision == "float16" and device.type == "cpu":
            continue  # takes a minute a step
        config = load_config(overrides=[f"train.compile={str(compiled).lower()}"])
        print(time_steps(config, batch, features, device, precision=precision, steps=arguments.steps), flush=True)


def read(arguments: argparse.Namespace) -> None:
    """Prints the speed of reading with each number of workers, cold and warm."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "feats.h5"
        features = SyntheticFeatures(*SIZES["qvhighlights"][1:])
        queries = synthetic_queries(arguments.videos, arguments.videos, features.grid("").duration_s)
        contents = Contents({"source": "synthetic"}, features.fps, features.patch_grid, features.joint)
        with CacheWriter(path, contents, {query.query: features.words(query.query) for query in queries}) as writer:
            for query in queries:
                tokens = features.tokens(query.vid)
                times_s = np.arange(75.0) * 2 + 1
                writer.store(query.vid, tokens=tokens, times_s=times_s, duration_s=150.0, content_hash="0" * 64)
            writer.write_index()
        print(
            f"{'workers':>8}{'cold, MB/s':>12}{'first, MB/s':>12}{'next, MB/s':>12}   (cold and first check every part)"
        )
        for workers in arguments.workers:
            speeds = [_epoch_mb_s(path, queries, workers, epochs=1, cold=True)[0]]
            speeds += _epoch_mb_s(path, queries, workers, epochs=2, cold=False)
            print(f"{workers:8}" + "".join(f"{speed:12.0f}" for speed in speeds), flush=True)


def _epoch_mb_s(path: Path, queries: list[Query], workers: int, *, epochs: int, cold: bool) -> list[float]:
    """Megabytes a second of each epoch."""
    features = CacheReader(path)
    speeds: list[float] = []
    draw = torch.Generator().manual_seed(0)
    with Loader(features, patches=True, workers=workers) as loader:
        # Start the workers before the time is measured.
        singles = plan_epoch(queries[:BATCH], features, batch_size=1, negative_pairs=False, generator=draw)
        list(loader.batches(singles[: 8 * workers]))
        for _ in range(epochs):
            plan = plan_epoch(queries, features, batch_size=BATCH, negative_pairs=True, generator=draw)
            if cold:
                _drop_from_page_cache(features, queries)
            size = 0
            started = time.perf_counter()
            for batch in loader.batches(plan):
                size += batch.tokens.numel() * 2
            speeds.append(size / 1e6 / (time.perf_counter() - started))
    return speeds


def _drop_from_page_cache(features: CacheReader, queries: list[Query]) -> None:
    for query in queries:
        descriptor = os.open(features.part_path(query.vid), os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    """Runs `step` or `read`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    steps = kinds.add_parser("step")
    steps.add_argument("--size", choices=SIZES, default="tiny")
    steps.add_argument("--steps", type=int, default=8)
    steps.add_argument("--device", default="cpu")
    steps.set_defaults(call=step)
    reads = kinds.add_parser("read")
    reads.add_argument("--folder", type=Path)
    reads.add_argument("--videos", type=int, default=100)
    reads.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    reads.set_defaults(call=read)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()

"""Compares the speed of extraction with that of its two halves and of a plain loop, and measures its peak memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from costl.pipeline.bench.decode_entrants import decord_indices
from costl.pipeline.bench.extract_entrants import decode_all, encode_all, extract_all, plain_extract
from costl.pipeline.bench.imitated_accelerator import ImitatedAccelerator
from costl.pipeline.bench.measure import Cost, can_measure_memory, cost_of, measure
from costl.pipeline.bench.memory import bench_memory
from costl.pipeline.bench.videos import link_copies, sample_world, videos_to_measure
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import resolve
from costl.pipeline.decode.pool import Chunk
from costl.pipeline.device import default_precision, pick_device
from costl.pipeline.encode.clip import CLIPEncoder, load_encoder
from costl.pipeline.encode.weights import Source
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.table import table
from costl.pipeline.options import FrameOptions
from costl.pipeline.processes import cpu_cores
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.encoder_thread import usual_batch
from costl.pipeline.videos import Video
from costl.pipeline.world.write_world import TINY_CLIP

_VIDEOS_PER_CORE = 3
_IMITATED_SPEEDUP = 4.0  # of the imitated accelerator relative to decoding; real ones are faster
_FORWARD_BATCHES = 4
_LEGEND = """
Frames a second. decode, CLIP: each half alone. extract: from end to end. limit: the slower half; on a CPU, which both
halves share, at least the CPU seconds of both on all cores. share: of the limit. imitated: extract with an accelerator
that sleeps in place of CLIP, four times as fast as decoding, and its share of the slower half. plain: decord, PIL and a
batch a video in one process. times: how much faster extract is. error: relative L2 distance of the plain loop's tokens.
""".strip().splitlines()


@dataclass(frozen=True)
class Comparison:
    """The costs of extracting `frames` frames of a set of videos with one model.

    `decode`: decoding alone, in extraction's own processes. `forward`: the network alone, on prepared frames. `extract`:
    extraction from end to end. `plain`: the plain loop, and `error`, the relative L2 distance of its tokens; None if it was
    not measured. `imitated`: extraction with an imitated accelerator of `rate` frames a second; None if decoding and network
    do not share the `cores` anyway.
    """

    frames: int
    cores: int
    decode: Cost
    forward: Cost
    extract: Cost
    plain: Cost | None = None
    error: float | None = None
    rate: float = 0.0
    imitated: Cost | None = None

    @property
    def limit_s(self) -> float:
        """The least possible time for all frames: that of the slower half.

        If both halves share the cores, it is at least the CPU seconds of both divided by the cores.
        """
        slower_half_s = max(self.decode.wall_s, self.forward.wall_s)
        if self.imitated is None:
            return slower_half_s
        return max(slower_half_s, (self.decode.cpu_s + self.forward.cpu_s) / self.cores)

    @property
    def share(self) -> float:
        """The limit relative to the time of extraction: 1 if extraction is as fast as possible."""
        return self.limit_s / self.extract.wall_s

    @property
    def imitated_share(self) -> float | None:
        """`share` with the imitated accelerator, which leaves all cores to decoding: its limit is the slower half."""
        if self.imitated is None:
            return None
        return max(self.decode.wall_s, self.frames / self.rate) / self.imitated.wall_s

    def row(self, name: str) -> list[str]:
        """The cells of the table."""
        seconds = (self.decode.wall_s, self.forward.wall_s, self.extract.wall_s, self.limit_s)
        imitated = ["-", "-"]
        if self.imitated:
            imitated = [f"{self.frames / self.imitated.wall_s:.1f}", f"{self.imitated_share:.2f}"]
        plain = ["-", "-", "-"]
        if self.plain:
            times = self.plain.wall_s / self.extract.wall_s
            plain = [f"{self.frames / self.plain.wall_s:.1f}", f"{times:.1f}", f"{self.error:.4f}"]
        return [
            name,
            str(self.frames),
            *(f"{self.frames / spent_s:.1f}" for spent_s in seconds),
            f"{self.share:.2f}",
            *imitated,
            *plain,
        ]


def bench_extract(
    *,
    videos: Path | None = None,
    models: Sequence[str] = (),
    fps: float = 0.5,
    device: str = "auto",
    decoder: str = "auto",
    repeats: int = 2,
    quick: bool = False,
    progress: ProgressCallback | None = None,
) -> list[str]:
    """The tables of the videos of a folder, by default of rendered videos and some of the sample world.

    `models` are names of open_clip; they have random weights, which take the same time. `decoder` is as in `extract`.
    `quick` uses small videos and the small CLIP, and leaves out the memory. Raises UsageError for less than one repeat and
    unknown models, CostlError for a video that cannot be read.
    """
    if repeats < 1:
        raise UsageError(f"repeats is {repeats}, expected at least 1.")
    if quick:
        encoders = [load_encoder(TINY_CLIP.name, str(TINY_CLIP), device=device)]
    else:
        encoders = [random_encoder(model, device) for model in models or ("ViT-B-32",)]
    frame_options = FrameOptions(resolve(decoder))
    report_progress = progress or (lambda _: None)
    lines = list(_LEGEND)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = videos_to_measure(videos, folder / "rendered", quick=quick, report_progress=report_progress)
        if videos is None:
            sets["the sample world"] = sample_world(folder / "world", quick=quick)
            count = 2 if quick else _VIDEOS_PER_CORE * cpu_cores()
            sets = {name: link_copies(of_set, count, folder / "links" / name) for name, of_set in sets.items()}
        for encoder in encoders:
            rows: list[list[str]] = []
            for name, of_set in sets.items():
                report_progress(Progress("extract", len(rows), len(sets), f"{name}, {encoder.name}"))
                with tempfile.TemporaryDirectory(dir=folder) as out:
                    comparison = compare(of_set, encoder, Path(out), fps=fps, frame_options=frame_options, repeats=repeats)
                rows.append(comparison.row(name))
            report_progress(Progress("extract", len(sets), len(sets)))
            lines += ["", *_table(encoder, rows, fps=fps, decoder=frame_options.decoder)]
    if can_measure_memory() and not quick:
        lines += ["", *bench_memory(decoder=frame_options.decoder, report_progress=report_progress)]
    return lines


def compare(
    videos: Sequence[Video],
    encoder: CLIPEncoder,
    folder: Path,
    *,
    fps: float,
    frame_options: FrameOptions,
    repeats: int,
    plain: bool = True,
) -> Comparison:
    """Measures everything on some videos with one model, without the plain loop unless `plain`; caches go to `folder`.

    Raises CostlError for an unreadable video.
    """
    times_s, batches = _prepare(videos, encoder, fps=fps, frame_options=frame_options)
    frames = sum(map(len, times_s.values()))
    on_cpu = encoder.device.type == "cpu"
    numbers = itertools.count()

    def decode() -> None:
        decode_all(videos, fps=fps, frame_options=frame_options)

    def extract(used_encoder: CLIPEncoder) -> None:
        extract_all(videos, used_encoder, folder / str(next(numbers)) / "feats.h5", fps=fps, frame_options=frame_options)

    rate = _IMITATED_SPEEDUP * frames / cost_of(decode).wall_s if on_cpu else 0.0
    works: dict[str, Callable[[], None]] = {
        "extract": lambda: extract(encoder),
        "decode": decode,
        "forward": lambda: encode_all(batches, encoder),
    }
    if plain:
        indices = {video.id: decord_indices(video.path, times_s[video.id]) for video in videos}
        works["plain"] = lambda: plain_extract(videos, indices, encoder, folder)
    if on_cpu:
        works["imitated"] = lambda: extract(ImitatedAccelerator(encoder, rate=rate))
    costs = measure(works, repeats=repeats)
    factor = frames / sum(map(len, batches))
    costs["forward"] = Cost(factor * costs["forward"].wall_s, factor * costs["forward"].cpu_s)
    error = token_error(CacheReader(folder / "0" / "feats.h5"), folder) if plain else None
    return Comparison(frames=frames, cores=cpu_cores(), error=error, rate=rate, **costs)


def token_error(cache: CacheReader, folder: Path) -> float:
    """The relative L2 distance between the tokens of a cache and those of the plain loop, of the worst video."""
    errors = []
    for row in cache.rows:
        expected = np.load(folder / f"{row.id}.npy", allow_pickle=False).astype(np.float32)
        tokens = np.asarray(cache.tokens(row.name), np.float32)
        errors.append(float(np.linalg.norm(tokens - expected) / np.linalg.norm(expected)))
    return max(errors)


def _prepare(
    videos: Sequence[Video], encoder: CLIPEncoder, *, fps: float, frame_options: FrameOptions
) -> tuple[dict[str, np.ndarray], list[Tensor]]:
    """The times [t] of the frames of each video, and a few batches of frames. Later reads come from the page cache."""
    times_s: dict[str, list[np.ndarray]] = {video.id: [] for video in videos}
    images: list[Tensor] = []
    batch = usual_batch(encoder)

    def use(chunk: Chunk) -> None:
        times_s[chunk.video_id].append(np.array(chunk.times_s))
        if sum(map(len, images)) < _FORWARD_BATCHES * batch:
            images.append(encoder.prepare(chunk.pixels))

    decode_all(videos, fps=fps, frame_options=frame_options, use=use)
    return {video_id: np.concatenate(times) for video_id, times in times_s.items()}, full_batches(images, batch)


def full_batches(images: Sequence[Tensor], batch: int) -> list[Tensor]:
    """A few batches of exactly `batch` frames. Starts again with the first frame if there are too few."""
    frames = torch.cat(list(images))
    count = max(1, min(_FORWARD_BATCHES, len(frames) // batch))
    indices = torch.arange(count * batch, device=frames.device) % len(frames)
    return list(frames[indices].split(batch))


def random_encoder(model: str, device: str) -> CLIPEncoder:
    """An open_clip model with random weights. Raises UsageError for an unknown model or device."""
    torch_device = pick_device(device)
    network, source = random_network(model)
    return CLIPEncoder(network, source=source, device=torch_device, precision=default_precision(torch_device.type))


def random_network(model: str) -> tuple[Any, Source]:
    """The network of an open_clip model with random weights, on the CPU. Raises UsageError for an unknown model."""
    if model not in open_clip.list_models():
        raise UsageError(f"no open_clip model is called {model!r}, expected a name such as ViT-B-32.")
    torch.manual_seed(0)
    network = open_clip.create_model(model, load_weights=False).eval().requires_grad_(False)
    return network, Source(f"{model}, random weights", model, Path())


def _table(encoder: CLIPEncoder, rows: Sequence[Sequence[str]], *, fps: float, decoder: str) -> list[str]:
    device = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else encoder.device.type
    title = f"{encoder.name} on {device} in {encoder.precision}, batches of {usual_batch(encoder)}, {cpu_cores()} cores"
    header = ["", "frames", "decode", "CLIP", "extract", "limit", "share", "imitated", "share", "plain", "times", "error"]
    return [f"{title}, {fps:g} fps, decoder {decoder}:", *table(header, rows)]

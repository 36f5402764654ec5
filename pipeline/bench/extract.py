"""Compares the speed of extraction with that of its two stages and of a plain loop, and measures its peak memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from costl.pipeline.bench.extract_entrants import (
    MAX_BATCHES,
    PlainTask,
    decode_events,
    decode_only,
    encode_only,
    extract_all,
    full_batches,
    plain_extract,
    plain_task,
)
from costl.pipeline.bench.extract_tables import Comparison, table
from costl.pipeline.bench.imitated_accelerator import ImitatedAccelerator, as_encoder
from costl.pipeline.bench.measure import Cost, best, can_measure_memory, cost_of
from costl.pipeline.bench.memory import Memory, bench_memory
from costl.pipeline.bench.videos import MEMORY_VIDEO, VideoSet, render_all, videos_to_measure
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.decode.backends import resolve
from costl.pipeline.decode.pool import Chunk, Decoded
from costl.pipeline.device import pick_device
from costl.pipeline.encode.clip import CLIPEncoder, load_encoder
from costl.pipeline.encode.weights import Source
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.options import FrameOptions
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.run.encoder_thread import usual_batch
from costl.pipeline.run.engine import cpu_cores
from costl.pipeline.videos import Video
from costl.pipeline.world.write_world import TINY_CLIP

MODEL = "ViT-B-32"
REPEATS = 2
# Relative L2 distance of tokens: PIL rounds one pixel in 10,000 differently, and kernels depend on the batch size.
TOLERANCE = {"fp32": 0.01, "fp16": 0.01, "bf16": 0.05}
_VIDEOS_PER_CORE = 3
_IMITATED_SPEEDUP = 4.0  # default rate of the imitated accelerator relative to decoding; real ones are faster
_MIN_FORWARD_S = 1.0
_MIN_FORWARD_QUICK_S = 0.05


@dataclass(frozen=True)
class ExtractBench:
    """All comparisons, the memory (None if it was not measured), and `notes` on what was left out."""

    comparisons: tuple[Comparison, ...]
    memory: Memory | None
    repeats: int
    notes: tuple[str, ...] = ()
    exit_code = 0

    def lines(self) -> list[str]:
        """Tables for the terminal."""
        lines = table(self.comparisons, self.repeats)
        if self.memory:
            lines += ["", *self.memory.lines()]
        if self.notes:
            lines += ["", *self.notes]
        return lines

    def data(self) -> dict[str, Any]:
        """Every number, for JSON."""
        return {
            "races": [comparison.data() for comparison in self.comparisons],
            "memory": self.memory.data() if self.memory else None,
            "repeats": self.repeats,
            "notes": list(self.notes),
        }


def bench_extract(
    *,
    videos: Path | None = None,
    models: Sequence[str] = (),
    weights: str | None = None,
    fps: float = 0.5,
    device: str = "auto",
    decoder: str = "auto",
    batch: int | None = None,
    rate: float | None = None,
    repeats: int = REPEATS,
    quick: bool = False,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
) -> ExtractBench:
    """Measures on the videos of a folder, by default on rendered videos and those of the sample world.

    `models` are names of open_clip, `decoder` is as in `extract`. Without `weights`, networks have random weights, which
    take the same time. On a CPU, extraction also runs with an imitated accelerator of `rate` frames a second. Caches go to
    a temporary folder in `folder`. Raises UsageError for numbers that are not positive and unknown models, CostlError if
    tokens differ from those of the plain loop.
    """
    _check_positive(repeats=repeats, batch=batch, rate=rate)
    if quick and not (models or weights):
        models = (TINY_CLIP.name,)
        weights = str(TINY_CLIP)
    names = models or (MODEL,)
    _check_models(names, weights, device)
    frame_options = FrameOptions(resolve(decoder))
    report_progress = progress or (lambda _: None)
    sets = videos_to_measure(videos, quick=quick, world=True, report_progress=report_progress)
    runner = _Runner(
        fps=fps,
        frame_options=frame_options,
        batch=batch,
        rate=rate,
        repeats=repeats,
        quick=quick,
        own_videos=videos is None,
        report_progress=report_progress,
    )
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        if videos is None:
            count = 2 if quick else _VIDEOS_PER_CORE * cpu_cores()
            links = Path(temporary) / "videos"
            sets = [video_set.link_copies(count, links / str(i)) for i, video_set in enumerate(sets)]
        runner.steps = len(names) * len(sets)
        for name in names:
            encoder = _load_encoder(name, weights, device)
            model = name if weights else encoder.name
            for video_set in sets:
                with tempfile.TemporaryDirectory(dir=temporary) as out:
                    comparisons.append(runner.compare(video_set, encoder, Path(out), model=model))
    notes = list(dict.fromkeys(runner.notes))
    memory = None
    if quick:
        notes.append("Peak memory was not measured: it takes longer than --quick may.")
    elif not can_measure_memory():
        notes.append("Peak memory was not measured: this system does not report the memory of other processes.")
    else:
        memory = _measure_memory(folder, frame_options, report_progress)
    return ExtractBench(tuple(comparisons), memory, repeats, tuple(notes))


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise UsageError(f"{name} is {number}, expected a number above zero.")


def _check_models(names: Sequence[str], weights: str | None, device: str) -> None:
    """Refuses unknown names before any video is rendered."""
    pick_device(device)
    for name in names:
        if weights is None and name.replace("/", "-") not in open_clip.list_models():
            raise UsageError(f"no open_clip model is called {name!r}, expected a name such as {MODEL}.")


def _load_encoder(name: str, weights: str | None, device: str) -> CLIPEncoder:
    if weights is not None:
        return load_encoder(name, weights, device=device)
    torch_device = pick_device(device)
    architecture = name.replace("/", "-")
    torch.manual_seed(0)
    network = open_clip.create_model(architecture, load_weights=False).eval().requires_grad_(False)
    source = Source(f"{architecture}, random weights", architecture, Path())
    precision = "fp16" if torch_device.type == "cuda" else "fp32"
    return CLIPEncoder(network, source=source, device=torch_device, precision=precision)


def _measure_memory(folder: Path | None, frame_options: FrameOptions, report_progress: ProgressCallback) -> Memory:
    ((_, path),) = render_all([MEMORY_VIDEO], report_progress)
    video = Video(path.stem, path)
    return bench_memory(video, fps=2.0, decoder=frame_options.decoder, folder=folder, report_progress=report_progress)


@dataclass(frozen=True)
class _Workload:
    """What is measured: videos that can be decoded, the times of their frames, and some frames as batches for CLIP.

    `times_s` and `plain` are by video id; `plain` lacks the videos that decord cannot read.
    """

    name: str
    videos: tuple[Video, ...]
    times_s: dict[str, np.ndarray]
    batches: list[Tensor]
    plain: dict[str, PlainTask] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return sum(len(times_s) for times_s in self.times_s.values())


@dataclass
class _Runner:
    """The settings that all comparisons share, their notes, and the progress."""

    fps: float
    frame_options: FrameOptions
    batch: int | None
    rate: float | None
    repeats: int
    quick: bool
    own_videos: bool
    report_progress: ProgressCallback
    steps: int = 1
    notes: list[str] = field(default_factory=list)
    _done: int = 0

    def compare(self, video_set: VideoSet, encoder: CLIPEncoder, folder: Path, *, model: str) -> Comparison:
        """Measures everything on one set of videos with one model. Takes turns, so that other load affects all alike."""
        batch = self.batch or usual_batch(encoder)
        self._report(video_set.name, encoder, "preparation")
        workload = self._prepare(video_set, encoder, batch)
        on_cpu = encoder.device.type == "cpu"
        costs: dict[str, list[Cost]] = {"decode": [], "forward": [], "extract": []}
        rate = self.rate or 0.0
        for number in range(self.repeats):
            self._report(video_set.name, encoder, f"{number + 1} of {self.repeats}")
            decode = self._measure_decode(workload)
            costs["decode"].append(decode)
            costs["forward"].append(self._measure_forward(workload, encoder))
            rate = rate or _IMITATED_SPEEDUP * workload.frames / decode.wall_s
            encoders = {"extract": encoder}
            if on_cpu:
                encoders["imitated"] = as_encoder(ImitatedAccelerator(encoder, rate=rate))
            for name, used_encoder in encoders.items():
                out = folder / f"{name}-{number}" / "feats.h5"
                costs.setdefault(name, []).append(self._measure_extract(workload, used_encoder, out, batch))
        plain_frames, plain = self._measure_plain(workload, encoder, folder)
        self._done += 1
        self._report(video_set.name, encoder, "done")
        return Comparison(
            clips=video_set.name,
            model=model,
            device=f"{_device_name(encoder)} {encoder.precision}",
            batch=batch,
            fps=self.fps,
            decoder=self.frame_options.decoder,
            videos=len(workload.videos),
            frames=workload.frames,
            cores=cpu_cores(),
            shared=on_cpu,
            **{name: best(repeats) for name, repeats in costs.items()},
            rate=rate if on_cpu else 0.0,
            plain=plain,
            plain_frames=plain_frames,
        )

    def _prepare(self, video_set: VideoSet, encoder: CLIPEncoder, batch: int) -> _Workload:
        """Decodes everything once. Videos that fail are left out everywhere, and later reads come from the page cache."""
        times_s: dict[str, list[np.ndarray]] = {video.id: [] for video in video_set.videos}
        decoded: set[str] = set()
        images: list[Tensor] = []
        events = decode_events(video_set.videos, fps=self.fps, frame_options=self.frame_options, processes=cpu_cores())
        for event in events:
            if isinstance(event, Chunk):
                times_s[event.video_id].append(np.array(event.times_s))
                if sum(map(len, images)) < MAX_BATCHES * batch:
                    images.append(encoder.prepare(event.pixels))
                event.release()
            elif isinstance(event, Decoded):
                decoded.add(event.video_id)
            else:
                self.notes.append(f"Left out: {event.reason}")
        videos = tuple(video for video in video_set.videos if video.id in decoded)
        if not videos:
            raise CostlError(f"{video_set.name}: no video that can be decoded. {' '.join(self.notes)}")
        video_times_s = {video.id: np.concatenate(times_s[video.id]) for video in videos}
        batches = full_batches(images, batch)
        return _Workload(video_set.name, videos, video_times_s, batches, self._plain_tasks(videos, video_times_s))

    def _plain_tasks(self, videos: Sequence[Video], times_s: dict[str, np.ndarray]) -> dict[str, PlainTask]:
        tasks = {}
        for video in videos:
            try:
                tasks[video.id] = plain_task(video.path, times_s[video.id])
            except Exception as error:  # decord raises errors of several types
                self.notes.append(f"The straightforward way cannot read {video.path.name} ({str(error)[:80]}).")
        return tasks

    def _measure_decode(self, workload: _Workload) -> Cost:
        """The cost of decoding all frames."""
        work = partial(decode_only, workload.videos, fps=self.fps, frame_options=self.frame_options, processes=cpu_cores())
        _, cost = cost_of(work)
        return cost

    def _measure_forward(self, workload: _Workload, encoder: CLIPEncoder) -> Cost:
        """The cost of the forward pass of all frames, estimated from the prepared batches."""
        min_s = _MIN_FORWARD_QUICK_S if self.quick else _MIN_FORWARD_S
        frames, cost = cost_of(partial(encode_only, encoder, workload.batches, min_s=min_s))
        return cost.scaled(workload.frames / frames)

    def _measure_extract(self, workload: _Workload, encoder: CLIPEncoder, out: Path, batch: int) -> Cost:
        """The cost of extraction from end to end."""
        work = partial(
            extract_all,
            workload.videos,
            encoder,
            out,
            fps=self.fps,
            frame_options=self.frame_options,
            batch=batch,
        )
        _, cost = cost_of(work)
        return cost

    def _measure_plain(self, workload: _Workload, encoder: CLIPEncoder, folder: Path) -> tuple[int, Cost | None]:
        """Frames and cost of the plain loop. Runs once, since the difference is a factor, not a few per cent."""
        self._report(workload.name, encoder, "the straightforward way")
        plain_folder = folder / "plain"
        plain_folder.mkdir()
        try:
            frames, cost = cost_of(partial(plain_extract, workload.plain, encoder, plain_folder))
        except CostlError as error:
            if self.own_videos:
                raise
            self.notes.append(f"{workload.name}: not compared with the straightforward way. {error}")
            return 0, None
        self._check_tokens(workload, encoder, CacheReader(folder / "extract-0" / "feats.h5"), plain_folder)
        return frames, cost

    def _check_tokens(self, workload: _Workload, encoder: CLIPEncoder, cache: CacheReader, plain_folder: Path) -> None:
        """Compares the tokens of the cache and of the plain loop. Raises CostlError if they differ on our own videos."""
        for video in workload.videos:
            if video.id not in workload.plain:
                continue
            expected = np.load(plain_folder / f"{video.id}.npy", allow_pickle=False).astype(np.float32)
            tokens = np.asarray(cache.tokens(video.path.stem), np.float32)
            error = _relative_error(tokens, expected)
            if error > TOLERANCE[encoder.precision]:
                message = f"{video.path.name}: tokens differ by {error:.3f} from those of the straightforward way"
                if self.own_videos:
                    raise CostlError(f"{message}, so that their speeds cannot be compared.")
                self.notes.append(f"{message}, since decord alone gives other frames of it.")

    def _report(self, set_name: str, encoder: CLIPEncoder, step: str) -> None:
        self.report_progress(Progress("extract", self._done, self.steps, f"{set_name}, {encoder.name}: {step}"))


def _device_name(encoder: CLIPEncoder) -> str:
    return torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else encoder.device.type


def _relative_error(tokens: np.ndarray, expected: np.ndarray) -> float:
    if tokens.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(tokens - expected) / np.linalg.norm(expected))

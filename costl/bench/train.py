"""Measures a training step: speed and memory of CoSTL and both baselines, on random features of a benchmark's shape."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from costl.bench.train_tables import BASELINE, OURS, PHASES, Cost, Row, TrainBench
from costl.config import Config, load_config
from costl.data.annotations import Query
from costl.data.batch import Batch
from costl.model.build import Model, build_model
from costl.pipeline.device import pick_device
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.progress import Progress, ProgressCallback
from costl.predict.predict import evaluation_mode
from costl.training.objective import total_loss

KINDS = (BASELINE, "adapter", OURS)
ROUNDS = 3
# Videos in a training batch of 32 queries: QVHighlights has 1.02 queries a video (31.4 videos a batch), Charades-STA 2.3
# (13.3 videos a batch).
VIDEOS = (32, 13)
MEAN_WORDS, MAX_WORDS = 11.6, 21  # tokens of a QVHighlights query: the mean, and the longest of the median batch
_CLIP_S = 2.0


@dataclass(frozen=True)
class Shape:
    """The shape of the features and the batch.

    `name` of the CLIP encoder, patches of a frame, channels of a token (`encoder_width`), of a word and of the joint
    space; `queries` in a batch, `clips` of a video, and `width` of the model.
    """

    name: str
    patch_grid: tuple[int, int]
    encoder_width: int
    word_width: int
    space: int
    queries: int = 32
    clips: int = 75
    width: int = 256

    @property
    def tokens(self) -> int:
        """The tokens of a frame: the frame token and its patches."""
        return 1 + self.patch_grid[0] * self.patch_grid[1]

    def config(self, kind: str) -> Config:
        """The default settings for a model of this kind."""
        return load_config({"model": {"kind": kind, "width": self.width}})


SHAPES = (Shape("ViT-B/32", (7, 7), 768, 1024, 512), Shape("ViT-L/14", (16, 16), 1024, 1536, 768))
QUICK = (
    Shape("tiny", (2, 2), 16, 24, 8, queries=4, clips=12, width=32),
    Shape("small", (3, 3), 24, 32, 12, queries=4, clips=12, width=32),
)


@dataclass(frozen=True)
class Measured:
    """One model in one case, measured in its own process: parameters, peak memory in bytes and FLOPs by phase."""

    parameters: int
    memory: dict[str, int | None]
    flops: dict[str, int]


def bench_train(
    *,
    videos: Sequence[int] = VIDEOS,
    rounds: int = ROUNDS,
    threads: int | None = None,
    quick: bool = False,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> TrainBench:
    """Times every model on random features of each encoder, 32 queries about each number of `videos`, in several rounds.

    Forward is what `evaluate` does with a batch; forward + backward is what `train` does, without negative sentences,
    optimizer and averaged weights. Memory and FLOPs are measured in a separate process for each model. `quick` uses tiny
    shapes. Raises UsageError for invalid arguments, CostlError when a measurement fails.
    """
    torch_device = pick_device(device)
    shapes = QUICK if quick else SHAPES
    videos = [min(count, shapes[0].queries) for count in videos] if quick else list(videos)
    _check(videos, rounds, threads, max_videos=shapes[0].queries)
    report_progress = progress or (lambda _: None)
    cases = [(shape, count) for shape in shapes for count in dict.fromkeys(videos)]
    measured: dict[tuple[str, str, int], Measured] = {}
    for number, (shape, count, kind) in enumerate((*case, kind) for case in cases for kind in KINDS):
        report_progress(Progress("memory", number, len(cases) * len(KINDS), f"{kind}, {shape.name}, {count} videos"))
        measured[kind, shape.name, count] = _measure_in_process(
            kind, shape, count, torch_device, threads=threads, quick=quick
        )
    report_progress(Progress("memory", len(cases) * len(KINDS), len(cases) * len(KINDS)))
    rows: list[Row] = []
    with _threads(threads):
        for number, (shape, count) in enumerate(cases):
            report_progress(Progress("time", number, len(cases), f"{shape.name}, {count} videos"))
            seconds = _time_models(shape, count, torch_device, rounds=rounds)
            rows += [_row(kind, shape, count, seconds, measured[kind, shape.name, count]) for kind in KINDS]
        report_progress(Progress("time", len(cases), len(cases)))
        return TrainBench(_machine(torch_device), shapes[0].clips, rounds, tuple(rows))


class Candidate:
    """A model with its batch on a device, and the two measured phases."""

    def __init__(self, kind: str, shape: Shape, batch: Batch, device: torch.device):
        self.config = shape.config(kind)
        self._batch = batch
        self._device = device
        self.model = _untrained(self.config, shape).to(device)

    def forward(self) -> None:
        """A batch as in evaluation: no gradients, full precision."""
        with evaluation_mode(self.model):
            self.model(**self._batch.model_inputs(), contrast=False)
        self._wait()

    def backward(self) -> None:
        """A batch as in training: every loss and every gradient, in bfloat16 if the device has it."""
        self.model.train()
        self.model.zero_grad()
        half = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            outputs = self.model(**self._batch.model_inputs())
        total, _ = total_loss(outputs, self._batch, self.config.loss)
        total.backward()
        self._wait()

    def phases(self) -> dict[str, Callable[[], None]]:
        """Both phases by name."""
        return dict(zip(PHASES, (self.forward, self.backward), strict=True))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def synthetic_batch(shape: Shape, videos: int, *, patches: bool) -> Batch:
    """Random features and one moment a query. Without `patches` a frame has its frame token only, as `cls` reads it."""
    draw = torch.Generator().manual_seed(0)
    queries = shape.queries
    clips = shape.clips
    lengths = (MEAN_WORDS + 4 * torch.randn(queries, generator=draw)).round().clamp(4, MAX_WORDS)
    lengths[0] = MAX_WORDS  # a batch is as long as its longest query
    start = torch.rand(queries, 1, generator=draw) * (clips - 2)
    moments = torch.cat([start, (start + 1 + clips / 5 * torch.rand(queries, 1, generator=draw)).clamp(max=clips)], 1)
    centres = torch.arange(clips) + 0.5
    relevant = (centres >= moments[:, :1]) & (centres < moments[:, 1:])
    sentence = torch.randn(queries, shape.space, generator=draw)
    return Batch(
        queries=tuple(Query(i, "a sentence", f"v{i % videos}", _CLIP_S * clips) for i in range(queries)),
        clips=(clips,) * queries,
        tokens=torch.randn(videos, clips, shape.tokens if patches else 1, shape.encoder_width, generator=draw),
        frame_mask=torch.ones(videos, clips, dtype=torch.bool),
        video=torch.arange(queries) % videos,
        words=torch.randn(queries, MAX_WORDS, shape.word_width, generator=draw),
        word_mask=torch.arange(MAX_WORDS) < lengths[:, None],
        sentence=sentence / sentence.norm(dim=-1, keepdim=True),
        texts=((),) * queries,
        moments=moments[:, None],
        moment_mask=torch.ones(queries, 1, dtype=torch.bool),
        ratings=relevant * torch.rand(queries, clips, generator=draw),
        relevant=relevant,
    )


def measure(kind: str, shape: Shape, videos: int, device: torch.device) -> Measured:
    """Parameters, peak memory in bytes and FLOPs of one model. The process must not do anything else.

    Memory is what the batch, the model and its activations add to the process; on a GPU, what torch allocates there.
    """
    warm_up = Candidate(kind, QUICK[0], synthetic_batch(QUICK[0], 2, patches=True).to(device), device)
    for phase in warm_up.phases().values():  # libraries allocate memory on first use
        _count_flops(phase)
    before = _reset_peak(device)
    batch = synthetic_batch(shape, videos, patches=shape.config(kind).patches).to(device)
    candidate = Candidate(kind, shape, batch, device)
    memory: dict[str, int | None] = {}
    flops: dict[str, int] = {}
    for name, phase in candidate.phases().items():
        flops[name] = _count_flops(phase)
        memory[name] = None if before is None else _peak(device) - before
    return Measured(sum(parameter.numel() for parameter in candidate.model.parameters()), memory, flops)


def _count_flops(phase: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        phase()
    return int(counter.get_total_flops())


def _untrained(config: Config, shape: Shape) -> Model:
    torch.manual_seed(0)
    width = shape.encoder_width
    joint: dict[str, Tensor] = {
        "norm_weight": torch.ones(width),
        "norm_bias": torch.zeros(width),
        "norm_eps": torch.tensor(1e-5),
        "projection": torch.randn(width, shape.space) * width**-0.5,
        "logit_scale": torch.tensor(100.0),
        "normed": torch.tensor(True),
    }
    return build_model(config, encoder_width=width, word_width=shape.word_width, patch_grid=shape.patch_grid, joint=joint)


def _time_models(shape: Shape, videos: int, device: torch.device, *, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every round by model and phase, after a warm-up round."""
    with_patches = synthetic_batch(shape, videos, patches=True).to(device)
    frames_only = synthetic_batch(shape, videos, patches=False).to(device)
    candidates = {
        kind: Candidate(kind, shape, with_patches if shape.config(kind).patches else frames_only, device) for kind in KINDS
    }
    phases = {(kind, name): phase for kind in KINDS for name, phase in candidates[kind].phases().items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in phases}
    for number in range(rounds + 1):  # in turn, so that other load of the machine affects all
        for key, phase in phases.items():
            started = time.perf_counter()
            phase()
            seconds[key] += [time.perf_counter() - started] if number else []
    return seconds


def _row(kind: str, shape: Shape, videos: int, seconds: dict[tuple[str, str], list[float]], measured: Measured) -> Row:
    costs = {name: Cost(tuple(seconds[kind, name]), measured.memory[name], measured.flops[name]) for name in PHASES}
    return Row(
        kind=kind,
        clip=shape.name,
        tokens=shape.tokens,
        width=shape.encoder_width,
        queries=shape.queries,
        videos=videos,
        parameters=measured.parameters,
        costs=costs,
    )


_MEASUREMENT = """
import json, sys
from dataclasses import asdict
import torch
from costl.bench.train import QUICK, SHAPES, measure

kind, number, videos, device, threads, quick = json.loads(sys.argv[1])
torch.set_num_threads(threads)
print(json.dumps(asdict(measure(kind, (QUICK if quick else SHAPES)[number], videos, torch.device(device)))))
"""


def _measure_in_process(
    kind: str, shape: Shape, videos: int, device: torch.device, *, threads: int | None, quick: bool
) -> Measured:
    number = (QUICK if quick else SHAPES).index(shape)
    arguments = json.dumps([kind, number, videos, str(device), threads or torch.get_num_threads(), quick])
    command = [sys.executable, "-c", _MEASUREMENT, arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if process.returncode:
        reason = (process.stderr.strip() or f"exit code {process.returncode}").splitlines()[-1]
        raise CostlError(
            f"{kind}, {shape.name}, {videos} videos: the measurement of memory failed ({reason}). If memory was short, pass "
            "fewer --videos."
        )
    measured: dict[str, Any] = json.loads(process.stdout)
    return Measured(**measured)


def _reset_peak(device: torch.device) -> int | None:
    """Resets the peak of memory, and returns the bytes in use now; None on systems that do not report them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):  # if this is not allowed, the peak includes what was in use earlier
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _proc_status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _proc_status("VmHWM")


def _proc_status(name: str) -> int:
    """Bytes of this process from /proc. `resource` would start at the peak of the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, float32 forward, {half} with backward"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {torch.get_num_threads()} of {cores} cores, torch {torch.__version__}, float32"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _check(videos: Sequence[int], rounds: int, threads: int | None, *, max_videos: int) -> None:
    wrong = [count for count in videos if not 1 <= count <= max_videos]
    if wrong or not videos:
        raise UsageError(f"videos is {list(videos)}, expected numbers from 1 to {max_videos}, the queries of a batch.")
    for name, count in (("rounds", rounds), ("threads", threads)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}, expected at least 1.")

"""A step of training as the model grows: speed and memory of CoSTL beside both baselines, on the batch of a benchmark."""

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
from costl.pipeline.errors import CostlError, UsageError
from costl.pipeline.progress import Progress, Tell
from costl.predict.predict import at_rest
from costl.training.objective import total_loss
from costl.training.precision import pick_device

KINDS = (BASELINE, "adapter", OURS)
ROUNDS = 3
# Batches as `training_batches` makes them of 32 queries: QVHighlights asks 1.02 queries about a video (31.4 videos a batch),
# Charades-STA 2.3 (13.3 a batch).
VIDEOS = (32, 13)
WORDS, LONGEST = 11.6, 21  # tokens of a QVHighlights query, mean and the median batch's longest
_CLIP_S = 2.0


@dataclass(frozen=True)
class Shape:
    """What CLIP gives: patches of a frame, channels of a token, of a word, of the space that both share; and how many
    queries about how long videos a batch has, for a model of which `width`."""

    name: str
    patch_grid: tuple[int, int]
    clip_width: int
    word_width: int
    space: int
    queries: int = 32
    clips: int = 75
    width: int = 256

    @property
    def tokens(self) -> int:
        """Of a frame: its own and its patches."""
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
    """What a process that did nothing else found out about one model in one case, by phase."""

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
    progress: Tell | None = None,
) -> TrainBench:
    """Times every model on random features of each CLIP, 32 queries about each number of `videos`, round after round.

    Forward is what `evaluate` does with a batch, forward + backward what `train` does, without its wrong sentences, its
    optimizer and its average. Memory and operations are measured in a process for each model that does nothing else.
    `quick` takes tiny shapes. Raises UsageError for what cannot be meant, CostlError when a measurement fails.
    """
    place, shapes = pick_device(device), QUICK if quick else SHAPES
    videos = [min(count, shapes[0].queries) for count in videos] if quick else list(videos)
    _check(videos, rounds, threads, most=shapes[0].queries)
    tell, cases = progress or (lambda _: None), [(shape, count) for shape in shapes for count in dict.fromkeys(videos)]
    found: dict[tuple[str, str, int], Measured] = {}
    for number, (shape, count, kind) in enumerate((*case, kind) for case in cases for kind in KINDS):
        tell(Progress("memory", number, len(cases) * len(KINDS), f"{kind}, {shape.name}, {count} videos"))
        found[kind, shape.name, count] = _in_a_process(kind, shape, count, place, threads=threads, quick=quick)
    tell(Progress("memory", len(cases) * len(KINDS), len(cases) * len(KINDS)))
    rows: list[Row] = []
    with _threads(threads):
        for number, (shape, count) in enumerate(cases):
            tell(Progress("time", number, len(cases), f"{shape.name}, {count} videos"))
            seconds = _race(shape, count, place, rounds=rounds)
            rows += [_row(kind, shape, count, seconds, found[kind, shape.name, count]) for kind in KINDS]
        tell(Progress("time", len(cases), len(cases)))
        return TrainBench(_machine(place), shapes[0].clips, rounds, tuple(rows))


class Contestant:
    """A model with its batch on a device, and the two things it does with it."""

    def __init__(self, kind: str, shape: Shape, batch: Batch, device: torch.device):
        self.config, self._batch, self._device = shape.config(kind), batch, device
        self.model = _untrained(self.config, shape).to(device)

    def forward(self) -> None:
        """What evaluation does: no gradient, full precision."""
        with at_rest(self.model):
            self.model(**self._batch.model_inputs(), matching=False)
        self._wait()

    def backward(self) -> None:
        """What training does: in bfloat16 where the device has it, every loss, every gradient."""
        self.model.train()
        self.model.zero_grad()
        half = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            outputs = self.model(**self._batch.model_inputs())
        total, _ = total_loss(outputs, self._batch, self.config.loss)
        total.backward()
        self._wait()

    def phases(self) -> dict[str, Callable[[], None]]:
        """Both by their names."""
        return dict(zip(PHASES, (self.forward, self.backward), strict=True))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def made_up_batch(shape: Shape, videos: int, *, patches: bool) -> Batch:
    """Random features and one moment a query; `patches` False leaves the frame tokens alone, as `cls` reads them."""
    draw, queries, clips = torch.Generator().manual_seed(0), shape.queries, shape.clips
    lengths = (WORDS + 4 * torch.randn(queries, generator=draw)).round().clamp(4, LONGEST)
    lengths[0] = LONGEST  # a batch is as long as its longest
    start = torch.rand(queries, 1, generator=draw) * (clips - 2)
    moments = torch.cat([start, (start + 1 + clips / 5 * torch.rand(queries, 1, generator=draw)).clamp(max=clips)], 1)
    at = torch.arange(clips) + 0.5
    relevant = (at >= moments[:, :1]) & (at < moments[:, 1:])
    sentence = torch.randn(queries, shape.space, generator=draw)
    return Batch(
        queries=tuple(Query(i, "a sentence", f"v{i % videos}", _CLIP_S * clips) for i in range(queries)),
        clips=(clips,) * queries,
        tokens=torch.randn(videos, clips, shape.tokens if patches else 1, shape.clip_width, generator=draw),
        frame_mask=torch.ones(videos, clips, dtype=torch.bool),
        video=torch.arange(queries) % videos,
        words=torch.randn(queries, LONGEST, shape.word_width, generator=draw),
        word_mask=torch.arange(LONGEST) < lengths[:, None],
        sentence=sentence / sentence.norm(dim=-1, keepdim=True),
        texts=((),) * queries,
        right=torch.ones(queries, dtype=torch.bool),
        moments=moments[:, None],
        moment_mask=torch.ones(queries, 1, dtype=torch.bool),
        ratings=relevant * torch.rand(queries, clips, generator=draw),
        relevant=relevant,
    )


def measure_alone(kind: str, shape: Shape, videos: int, device: torch.device) -> Measured:
    """Parameters, peak memory and operations of one model, for a process that does nothing else.

    Memory is what the batch, the model and its work add to the process; on a GPU, what torch allocates there.
    """
    warm = Contestant(kind, QUICK[0], made_up_batch(QUICK[0], 2, patches=True).to(device), device)
    for phase in warm.phases().values():  # libraries take memory of their own when they are first used
        _counted(phase)
    before = _held(device)
    batch = made_up_batch(shape, videos, patches=shape.config(kind).patches).to(device)
    contestant = Contestant(kind, shape, batch, device)
    memory: dict[str, int | None] = {}
    flops: dict[str, int] = {}
    for name, phase in contestant.phases().items():
        flops[name] = _counted(phase)
        memory[name] = None if before is None else _peak(device) - before
    return Measured(sum(parameter.numel() for parameter in contestant.model.parameters()), memory, flops)


def _counted(phase: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        phase()
    return int(counter.get_total_flops())


def _untrained(config: Config, shape: Shape) -> Model:
    torch.manual_seed(0)
    width = shape.clip_width
    joint: dict[str, Tensor] = {
        "norm_weight": torch.ones(width),
        "norm_bias": torch.zeros(width),
        "norm_eps": torch.tensor(1e-5),
        "projection": torch.randn(width, shape.space) * width**-0.5,
        "logit_scale": torch.tensor(100.0),
        "normed": torch.tensor(True),
    }
    return build_model(config, clip_width=width, word_width=shape.word_width, patch_grid=shape.patch_grid, joint=joint)


def _race(shape: Shape, videos: int, device: torch.device, *, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every round by model and phase; one round before them does not count."""
    whole = made_up_batch(shape, videos, patches=True).to(device)
    frames = made_up_batch(shape, videos, patches=False).to(device)
    phases = {
        (kind, name): phase
        for kind in KINDS
        for name, phase in Contestant(kind, shape, whole if shape.config(kind).patches else frames, device)
        .phases()
        .items()
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in phases}
    for number in range(rounds + 1):  # in turn, so that what else the machine does falls on all
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
        width=shape.clip_width,
        queries=shape.queries,
        videos=videos,
        parameters=measured.parameters,
        costs=costs,
    )


_ALONE = """
import json, sys
from dataclasses import asdict
import torch
from costl.bench.train import QUICK, SHAPES, measure_alone

kind, number, videos, device, threads, quick = json.loads(sys.argv[1])
torch.set_num_threads(threads)
print(json.dumps(asdict(measure_alone(kind, (QUICK if quick else SHAPES)[number], videos, torch.device(device)))))
"""


def _in_a_process(
    kind: str, shape: Shape, videos: int, device: torch.device, *, threads: int | None, quick: bool
) -> Measured:
    number = (QUICK if quick else SHAPES).index(shape)
    asked = json.dumps([kind, number, videos, str(device), threads or torch.get_num_threads(), quick])
    command = [sys.executable, "-c", _ALONE, asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise CostlError(
            f"{kind}, {shape.name}, {videos} videos: the measurement of memory failed ({said}). If memory was short, ask "
            "for fewer --videos."
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return Measured(**found)


def _held(device: torch.device) -> int | None:
    """What is held just now, from which on a new peak counts; None where nobody tells."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):  # where this is not allowed, what was held before counts at its own peak
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """Bytes of this process, as Linux tells them: not by `resource`, where a process starts at its parent's peak."""
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
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _check(videos: Sequence[int], rounds: int, threads: int | None, *, most: int) -> None:
    wrong = [count for count in videos if not 1 <= count <= most]
    if wrong or not videos:
        raise UsageError(f"videos is {list(videos)}, expected numbers from 1 to {most}, the queries of a batch.")
    for name, count in (("rounds", rounds), ("threads", threads)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}, expected at least 1.")

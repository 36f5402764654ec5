"""Measures a training step: speed and memory of CoSTL and both baselines, on random features of a benchmark's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from costl.config import Config, load_config
from costl.data.annotations import Query
from costl.data.batch import Batch
from costl.model.build import Model, build_model
from costl.model.contrast import BatchTexts
from costl.model.inputs import ModelInputs
from costl.pipeline.bench.measure import can_measure_memory, in_new_process, measure, peak_rss
from costl.pipeline.device import pick_device
from costl.pipeline.errors import UsageError
from costl.pipeline.formats.table import table
from costl.pipeline.progress import Progress, ProgressCallback
from costl.predict.predict import evaluation_mode
from costl.training.objective import total_loss

BASELINE = "cls"
KINDS = (BASELINE, "adapter", "costl")
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
class Phase:
    """What a batch takes: `seconds`, peak `memory` in bytes (NaN if unknown), and the `flops` of its matrix products."""

    seconds: float
    memory: float
    flops: int


def bench_train(
    *,
    videos: Sequence[int] = VIDEOS,
    repeats: int = 2,
    quick: bool = False,
    device: str = "auto",
    progress: ProgressCallback | None = None,
) -> list[str]:
    """The table of every model on random features of each encoder, 32 queries about each number of `videos`.

    Forward is what `evaluate` does with a batch; forward + backward is what `train` does, without negative sentences,
    optimizer and averaged weights. Each model is measured in a process of its own. `quick` uses tiny shapes. Raises
    UsageError for invalid arguments, CostlError if memory is short.
    """
    torch_device = pick_device(device)
    shapes = QUICK if quick else SHAPES
    queries = shapes[0].queries
    videos = [min(count, queries) for count in videos] if quick else videos
    if repeats < 1 or not all(1 <= count <= queries for count in videos):
        raise UsageError(
            f"videos {list(videos)}, repeats {repeats}: expected 1 to {queries} videos, the queries of a batch, and "
            "at least one repeat."
        )
    report_progress = progress or (lambda _: None)
    cases = [(shape, count, kind) for shape in shapes for count in dict.fromkeys(videos) for kind in KINDS]
    rows = []
    baseline: tuple[Phase, Phase] | None = None
    for number, (shape, count, kind) in enumerate(cases):
        report_progress(Progress("measure", number, len(cases), f"{kind}, {shape.name}, {count} videos"))
        phases = in_new_process(measure_model, kind, shape, count, torch_device, repeats=repeats)
        baseline = phases if kind == BASELINE or baseline is None else baseline
        rows.append([f"{shape.name}, {count} videos: {kind}", *cells(phases, baseline, queries)])
    report_progress(Progress("measure", len(cases), len(cases)))
    name = torch.cuda.get_device_name(torch_device) if torch_device.type == "cuda" else "CPU"
    header = [f"{queries} queries", "forward/s", "times", "MB", "GFLOP", "with backward/s", "times", "MB", "GFLOP"]
    return [
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; best of {repeats}.",
        f"/s: queries a second; times: as long as {BASELINE}; MB: peak memory with batch, weights and gradients.",
        *table(header, rows),
    ]


def cells(phases: Sequence[Phase], baseline: Sequence[Phase], queries: int) -> list[str]:
    """For each phase: queries a second, the time relative to the baseline, megabytes and GFLOP."""
    result = []
    for phase, of_baseline in zip(phases, baseline, strict=True):
        times = phase.seconds / of_baseline.seconds
        result += [f"{queries / phase.seconds:.4g}", f"{times:.2f}"]
        result += [f"{phase.memory / 1e6:.0f}", f"{phase.flops / 1e9:.1f}"]
    return result


def measure_model(kind: str, shape: Shape, videos: int, device: torch.device, *, repeats: int) -> tuple[Phase, Phase]:
    """The forward pass alone, and forward and backward pass, of one model. The process must not have done anything else.

    Memory is what the batch, the model and its activations add to the process; on a GPU, what torch allocates there.
    """
    warm_up = Candidate(kind, QUICK[0], synthetic_batch(QUICK[0], 2, patches=True).to(device), device)
    for work in (warm_up.forward, warm_up.backward):  # libraries allocate memory on first use
        _count_flops(work)
    before = _peak_memory(device)
    batch = synthetic_batch(shape, videos, patches=shape.config(kind).patches).to(device)
    candidate = Candidate(kind, shape, batch, device)
    forward_flops = _count_flops(candidate.forward)
    forward_memory = _peak_memory(device) - before
    backward_flops = _count_flops(candidate.backward)
    backward_memory = _peak_memory(device) - before
    costs = measure({"forward": candidate.forward, "backward": candidate.backward}, repeats=repeats)
    forward = Phase(costs["forward"].wall_s, forward_memory, forward_flops)
    return forward, Phase(costs["backward"].wall_s, backward_memory, backward_flops)


class Candidate:
    """A model with its batch on a device, and the two measured phases."""

    def __init__(self, kind: str, shape: Shape, batch: Batch, device: torch.device):
        self.config = shape.config(kind)
        self._batch = batch
        self._device = device
        self.model = untrained(self.config, shape).to(device)

    def forward(self) -> None:
        """A batch as in evaluation: no gradients, full precision."""
        with evaluation_mode(self.model):
            self.model(self._batch.inputs)
        self._wait()

    def backward(self) -> None:
        """A batch as in training: every loss and every gradient, in bfloat16 if the device has it."""
        self.model.train()
        self.model.zero_grad()
        half = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            outputs = self.model(self._batch.inputs, contrast=BatchTexts.of_inputs(self._batch.inputs))
        total, _ = total_loss(outputs, self._batch, self.config.loss)
        total.backward()
        self._wait()

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
    inputs = ModelInputs(
        tokens=torch.randn(videos, clips, shape.tokens if patches else 1, shape.encoder_width, generator=draw),
        joint=torch.randn(videos, clips, shape.space, generator=draw),
        frame_mask=torch.ones(videos, clips, dtype=torch.bool),
        video=torch.arange(queries) % videos,
        words=torch.randn(queries, MAX_WORDS, shape.word_width, generator=draw),
        word_mask=torch.arange(MAX_WORDS) < lengths[:, None],
        sentence=sentence / sentence.norm(dim=-1, keepdim=True),
    )
    return Batch(
        queries=tuple(Query(i, "a sentence", f"v{i % videos}", _CLIP_S * clips) for i in range(queries)),
        inputs=inputs,
        video=inputs.video,
        frame_mask=inputs.frame_mask,
        moments=moments[:, None],
        moment_mask=torch.ones(queries, 1, dtype=torch.bool),
        ratings=relevant * torch.rand(queries, clips, generator=draw),
        relevant=relevant,
    )


def untrained(config: Config, shape: Shape) -> Model:
    """The model of these settings for features of this shape, with the same random weights in each call."""
    torch.manual_seed(0)
    return build_model(
        config,
        encoder_width=shape.encoder_width,
        word_width=shape.word_width,
        patch_grid=shape.patch_grid,
        joint_width=shape.space,
        logit_scale=100.0,
    )


def _count_flops(work: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _peak_memory(device: torch.device) -> float:
    """Peak memory of this process in bytes; on a GPU, what torch has allocated there; NaN if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_rss() if can_measure_memory() else float("nan")

"""The bench of a training step: fair batches, right arithmetic, and a line for every model and case."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from costl.bench import train as bench
from costl.bench.train import KINDS, QUICK, SHAPES, VIDEOS, Candidate, Phase, cells, measure_model, synthetic_batch
from costl.commands import main
from costl.data.annotations import Query
from costl.data.sampler import plan_epoch
from costl.pipeline.bench.measure import can_measure_memory, in_new_process

CPU = torch.device("cpu")


def test_rates_and_ratios_are_relative_to_the_baseline():
    phases = (Phase(0.4, 5e6, 10**9), Phase(4.0, 2.5e7, 3 * 10**9))
    baseline = (Phase(0.2, 1e6, 10**9), Phase(1.0, 2e6, 10**9))
    assert cells(phases, baseline, 32) == ["80", "2.00", "5", "1.0", "8", "4.00", "25", "3.0"]


@pytest.fixture
def measured_here(monkeypatch):
    """Every model is measured in this process, which is faster than to start one each; -> the requested cases."""
    cases = []

    def measured(work, *arguments, **options):
        cases.append((work, *arguments))
        return work(*arguments, **options)

    monkeypatch.setattr(bench, "in_new_process", measured)
    return cases


def test_the_command_has_a_line_for_every_model_in_every_case(measured_here):
    arguments = ["bench", "train", "--quick", "--repeats", "1", "--videos", "4", "--videos", "2", "--device", "cpu"]
    done = CliRunner().invoke(main, [*arguments, "--videos", "2"])
    assert done.exit_code == 0, done.output
    rows = [line.split("|") for line in done.stdout.splitlines() if " videos: " in line]
    cases = [f"{shape.name}, {videos} videos: {kind}" for shape in QUICK for videos in (4, 2) for kind in KINDS]
    assert [row[1].strip() for row in rows] == cases and len(measured_here) == len(cases)
    assert all(float(row[2]) > 0 and float(row[6]) > 0 for row in rows)
    assert torch.__version__ in done.stdout


def test_a_backward_pass_has_twice_the_operations_of_a_forward_pass():
    small, large = (measure_model("costl", shape, 4, CPU, repeats=1) for shape in QUICK)
    for forward, both in (small, large):
        assert 2.5 < both.flops / forward.flops < 3.5
    assert large[0].flops > small[0].flops  # more and wider tokens


@pytest.mark.skipif(not can_measure_memory(), reason="this system does not report the memory of processes")
def test_peak_memory_is_that_of_a_process_with_one_batch():
    large = bench.Shape("large", (7, 7), 768, 64, 32, queries=4, clips=60, width=32)
    tokens = 4 * 60 * 50 * 768 * 4
    patches, frames = (in_new_process(measure_model, kind, large, 4, CPU, repeats=1) for kind in ("costl", "cls"))
    assert patches[0].memory > tokens > 4 * frames[0].memory
    assert patches[1].memory >= patches[0].memory


def test_backward_gives_every_gradient_and_forward_none():
    shape = QUICK[0]
    candidate = Candidate("costl", shape, synthetic_batch(shape, 4, patches=True), CPU)
    for _ in range(2):
        candidate.backward()
        assert all(parameter.grad is not None for parameter in candidate.model.parameters())
        first = next(candidate.model.parameters()).grad.clone()
        candidate.forward()
        assert candidate.model.training  # as before
    candidate.model.eval()
    assert first.abs().sum() > 0


def test_a_batch_has_the_shape_of_the_benchmark():
    shape = SHAPES[0]
    batch = synthetic_batch(shape, 13, patches=False)
    assert len(batch.queries) == 32 and batch.inputs.tokens.shape == (13, 75, 1, 768)
    assert batch.inputs.words.shape == (32, 21, 1024)
    assert batch.video.unique().tolist() == list(range(13)) and batch.video.bincount().max() == 3
    assert (batch.moments[..., 0] < batch.moments[..., 1]).all() and batch.moments.max() <= 75
    assert batch.relevant.any(1).all() and batch.relevant.dtype == torch.bool
    assert [(shape.tokens, shape.encoder_width) for shape in SHAPES] == [(50, 768), (257, 1024)]
    assert synthetic_batch(QUICK[0], 2, patches=True).inputs.tokens.shape == (2, 12, 5, 16)


class UnreadFeatures:
    """Features that are never read."""

    fps, patch_grid, joint = 1.0, (1, 1), None

    def grid(self, *_): ...
    def tokens(self, *_): ...
    def joint_vectors(self, *_): ...
    def words(self, *_): ...


@pytest.mark.parametrize(
    ("name", "file", "videos"),
    [
        ("qvhighlights", "highlight_train_release.jsonl", VIDEOS[0]),
        ("charades_sta", "charades_sta_train_tvr_format.jsonl", VIDEOS[1]),
    ],
)
def test_the_number_of_videos_is_that_of_training_batches(name, file, videos, official):
    lines = (official(name) / file).read_text(encoding="utf-8").splitlines()
    queries = [Query(number, "a sentence", json.loads(line)["vid"], 1.0) for number, line in enumerate(lines)]
    plan = plan_epoch(queries, UnreadFeatures(), batch_size=32, negative_pairs=False, generator=torch.Generator().manual_seed(0))
    counts = [len({query.vid for query in planned.queries}) for planned in plan]
    assert sum(counts) / len(counts) == pytest.approx(videos, abs=0.7)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--videos", "0"], "'--videos': 0 is not in the range"),
        (["--videos", "33"], "videos [33], repeats 2: expected 1 to 32 videos"),
        (["--repeats", "0"], "'--repeats': 0 is not in the range"),
        (["--device", "toaster"], "device 'toaster' cannot be used here"),
    ],
)
def test_invalid_options_are_refused_before_anything_runs(options, message, measured_here):
    done = CliRunner().invoke(main, ["bench", "train", *options])
    assert done.exit_code == 2 and message in done.stderr and not measured_here

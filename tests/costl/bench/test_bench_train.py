"""The bench of training: its table, its ratios, and that it runs what evaluation and training run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import pytest
import torch
from click.testing import CliRunner

from costl.bench import train as bench
from costl.bench.train import KINDS, QUICK, SHAPES, VIDEOS, Candidate, Measured, bench_train, synthetic_batch
from costl.bench.train_tables import PHASES, Cost, Row, TrainBench
from costl.commands import main
from costl.data.annotations import Query
from costl.data.sampler import plan_epoch
from costl.pipeline.errors import CostlError, UsageError

CPU = torch.device("cpu")


def row(kind: str, clip: str, seconds: Mapping[str, tuple[float, ...]], memory: int | None = 4_000_000) -> Row:
    costs = {name: Cost(values, memory, flops=10**9) for name, values in seconds.items()}
    return Row(kind=kind, clip=clip, tokens=5, width=8, queries=32, videos=32, parameters=2_000_000, costs=costs)


def example_bench() -> TrainBench:
    forward, both = PHASES
    return TrainBench(
        "a machine",
        75,
        3,
        (
            row("cls", "small", {forward: (0.1, 0.5, 0.2), both: (1.0, 1.0, 1.0)}, 2_000_000),
            row("costl", "small", {forward: (0.4, 0.4, 0.3), both: (4.0, 3.0, 5.0)}, 5_000_000),
            row("cls", "large", {forward: (0.2, 0.2, 0.2), both: (1.0, 1.0, 1.0)}),
            row("costl", "large", {forward: (0.6, 0.6, 0.6), both: (5.0, 6.0, 7.0)}, None),
        ),
    )


# --- tables from given times ---------------------------------------------------------------------------------


def test_rates_and_ratios_are_of_the_median_round():
    forward, both = PHASES
    result = example_bench()
    cls, ours, _, large = result.rows
    assert cls.rate(forward) == 160.0 and ours.rate(both) == 8.0
    assert cls.costs[forward].spread == pytest.approx(1.0) and ours.costs[both].spread == 0.25
    assert result.times(ours, forward) == 2.0 and result.times(ours, both) == 4.0 and result.times(cls, both) == 1.0
    assert result.times(large, forward) == pytest.approx(3.0)  # relative to the baseline of its own case
    assert result.times_memory(ours, both) == 2.5 and result.times_memory(large, both) is None
    assert result.growth("costl", 32, forward) == pytest.approx(1.5) and result.growth("costl", 32, both) == 1.5


def test_the_table_has_a_line_a_model_and_the_cost_of_a_larger_encoder():
    lines = example_bench().lines()
    assert lines[0] == "a machine."
    assert "small: 5 tokens of 8, 32 queries about 32 videos" in lines
    cells = [line.replace("|", " ").split() for line in lines if line.startswith("  costl")]
    assert cells[0] == [
        *("costl", "2.0M"),
        *("80", "13%", "2.00", "5", "2.5", "1.0"),
        *("8", "25%", "4.00", "5", "2.5", "1.0"),
    ]
    assert cells[1][5:7] == ["-", "-"]
    assert lines[-2:] == [
        "costl, time a query with large over small (bar 2):",
        "   32 videos   forward 1.50, forward + backward 1.50",
    ]


def test_json_has_the_rounds_and_all_derived_numbers():
    result = json.loads(json.dumps(example_bench().data()))
    assert result["rows"][1]["costs"]["forward"]["seconds"] == [0.4, 0.4, 0.3]
    assert result["rows"][1]["phases"]["forward + backward"]["times"] == 4.0
    assert result["growth"]["costl"]["32"] == pytest.approx(dict.fromkeys(PHASES, 1.5))


# --- measurements ----------------------------------------------------------------------------------------------


@pytest.fixture
def measured_here(monkeypatch):
    """Every model is measured in this process, which is faster than to start one each; -> the requested cases."""
    cases = []

    def measured(kind, shape, videos, device, **options):
        cases.append((kind, shape.name, videos, options))
        return bench.measure(kind, shape, videos, device)

    monkeypatch.setattr(bench, "_measure_in_process", measured)
    return cases


def test_every_model_is_measured_in_every_case(measured_here):
    threads, progress = torch.get_num_threads(), []
    result = bench_train(videos=[4, 2, 2], rounds=2, threads=1, quick=True, device="cpu", progress=progress.append)
    assert [(r.kind, r.clip, r.videos) for r in result.rows] == [
        (kind, shape.name, videos) for shape in QUICK for videos in (4, 2) for kind in KINDS
    ]
    assert len(measured_here) == len(result.rows) and torch.get_num_threads() == threads
    for r in result.rows:
        assert list(r.costs) == list(PHASES) and r.parameters > 1000
        forward, both = r.costs.values()
        assert len(forward.seconds) == len(both.seconds) == 2 and min(*forward.seconds, *both.seconds) > 0
        assert 2.5 < both.flops / forward.flops < 3.5
    costl = [r for r in result.rows if r.kind == "costl" and r.videos == 4]
    assert costl[1].costs["forward"].flops > costl[0].costs["forward"].flops  # more and wider tokens
    assert "1 of" in result.machine and torch.__version__ in result.machine
    assert progress[0].stage == "memory" and (progress[-1].stage, progress[-1].done) == ("time", 4)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_peak_memory_is_that_of_a_process_with_one_batch(monkeypatch):
    large = bench.Shape("large", (7, 7), 768, 64, 32, queries=4, clips=60, width=32)
    tokens = 4 * 60 * 50 * 768 * 4
    monkeypatch.setattr(bench, "_MEASUREMENT", bench._MEASUREMENT.replace("(QUICK if quick else SHAPES)[number]", repr_of(large)))
    monkeypatch.setattr(bench, "SHAPES", (large,))
    patches, frames = (bench._measure_in_process(k, large, 4, CPU, threads=1, quick=False) for k in ("costl", "cls"))
    assert patches.memory["forward"] > tokens > 4 * frames.memory["forward"]
    assert patches.memory["forward + backward"] >= patches.memory["forward"]


def repr_of(shape: bench.Shape) -> str:
    return f"__import__('costl.bench.train', fromlist=['Shape']).{shape!r}"


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
    assert len(batch.queries) == 32 and batch.tokens.shape == (13, 75, 1, 768) and batch.words.shape == (32, 21, 1024)
    assert batch.video.unique().tolist() == list(range(13)) and batch.video.bincount().max() == 3
    assert (batch.moments[..., 0] < batch.moments[..., 1]).all() and batch.moments.max() <= 75
    assert batch.relevant.any(1).all() and batch.relevant.dtype == torch.bool
    assert [(shape.tokens, shape.encoder_width) for shape in SHAPES] == [(50, 768), (257, 1024)]
    assert synthetic_batch(QUICK[0], 2, patches=True).tokens.shape == (2, 12, 5, 16)


class UnreadFeatures:
    """Features that are never read."""

    fps, patch_grid, joint = 1.0, (1, 1), None

    def grid(self, *_): ...
    def tokens(self, *_): ...
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


def test_the_command_prints_the_table_or_json(measured_here):
    arguments = ["bench", "train", "--quick", "--rounds", "1", "--videos", "2", "--device", "cpu"]
    table = CliRunner().invoke(main, arguments)
    assert table.exit_code == 0, table.output
    assert [line.split()[0] for line in table.stdout.splitlines() if line.startswith("  ") and "M  |" in line] == [
        *KINDS,
        *KINDS,
    ]
    result = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert {one["kind"] for one in result["rows"]} == set(KINDS) and result["rounds"] == 1
    assert "costl bench train --device cuda" in CliRunner().invoke(main, ["bench", "train", "--help"]).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--videos", "0"], "videos is [0], expected numbers from 1 to 32"),
        (["--videos", "33"], "videos is [33], expected numbers from 1 to 32"),
        (["--rounds", "0"], "rounds is 0, expected at least 1."),
        (["--threads", "-1"], "threads is -1, expected at least 1."),
        (["--device", "toaster"], "device 'toaster' cannot be used here"),
    ],
)
def test_invalid_options_are_refused_before_anything_runs(options, message, measured_here):
    done = CliRunner().invoke(main, ["bench", "train", *options])
    assert done.exit_code == 2 and message in done.stderr and not measured_here


def test_a_failed_measurement_names_the_case_and_the_next_step(monkeypatch):
    monkeypatch.setattr(bench, "_MEASUREMENT", "import sys; sys.exit('no room')")
    with pytest.raises(CostlError, match=r"cls, tiny, 4 videos: .*failed \(no room\)\. If memory was short.*--videos"):
        bench_train(quick=True, device="cpu")


def test_the_result_of_the_measuring_process_is_returned_whole(monkeypatch):
    result = {"parameters": 7, "memory": dict.fromkeys(PHASES, 1), "flops": dict.fromkeys(PHASES, 2)}
    monkeypatch.setattr(bench, "_MEASUREMENT", f"print({json.dumps(result)!r})")
    assert bench._measure_in_process("cls", QUICK[0], 2, CPU, threads=1, quick=True) == Measured(**result)


def test_an_empty_list_of_videos_is_refused():
    with pytest.raises(UsageError, match=r"videos is \[\]"):
        bench_train(videos=[], quick=True, device="cpu")

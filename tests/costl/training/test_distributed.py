"""Several processes train as one: real ones, over gloo, on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import distributed_training as in_ranks
import pytest
import torch
from click.testing import CliRunner

from costl.commands import main
from costl.evaluate import evaluate
from costl.pipeline.errors import UsageError
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.distributed import Ranks
from costl.training.launch import Launch, launched
from costl.training.run_folder import read_run

ROOT = Path(__file__).parents[3]
STILL = in_ranks.STILL


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun would set; warnings of libraries are no matter of ours there."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    texts = {name: str(value) for name, value in told.items()}
    return os.environ | texts | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*command: str, count: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *command], env=environment(rank, count, port), **pipes)
        for rank in range(count)
    ]


def end(processes: list[subprocess.Popen], timeout_s: float = 200) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, standard outputs and standard errors, by rank."""
    try:
        said = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [out for out, _ in said], [err for _, err in said]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    learned, meta = load_checkpoint(folder, "last")
    return learned | {f"average {name}": value for name, value in meta["average"].items()}


def stop_within_epoch_two(progress) -> None:
    if "epoch 1:" in progress.detail and progress.done < progress.total:
        raise in_ranks.Stop


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> Path:
    """What one process makes of the settings `still` and `uneven`, and a run of the first that it left after an epoch."""
    folder = tmp_path_factory.mktemp("alone")
    run = {"device": "cpu"}
    train(world.cache, overrides=STILL, out=folder / "still", **run)
    train(world.cache, overrides=[*STILL, "train.batch_size=6"], out=folder / "uneven", **run)
    with pytest.raises(in_ranks.Stop):
        train(world.cache, overrides=STILL, out=folder / "stopped", progress=stop_within_epoch_two, **run)
    return folder


@pytest.fixture(scope="module")
def shared(world, alone, tmp_path_factory) -> Path:
    """The same by two processes."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(alone / "stopped", folder / "stopped")
    processes = start(in_ranks.__file__, str(world.cache), str(folder), str(folder / "stopped"))
    codes, _, errors = end(processes)
    assert codes == [0, 0], "\n".join(errors)
    return folder


def assert_close(folder: Path, expected: Path) -> None:
    """Losses to float rounding, weights to what Adam makes of rounding in a few steps, validation to the last decimal.

    Adam divides a gradient by its own size, so that a weight whose gradient is rounding alone (a bias before a softmax)
    moves by up to the learning rate of 5e-4 a step wherever rounding points it.
    """
    for row, whole in zip(rows(folder), rows(expected), strict=True):
        assert row["losses"] == pytest.approx(whole["losses"], rel=1e-5, abs=1e-7)
        assert row["val"] == pytest.approx(whole["val"], abs=0.011)
    a, b = weights(folder), weights(expected)
    assert a.keys() == b.keys()
    apart = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    assert apart.quantile(0.99) < 1e-6 and apart.max() < 1e-3


def test_two_processes_learn_what_one_does_from_the_same_global_batches(shared, alone):
    assert_close(shared / "still", alone / "still")


def test_they_do_too_where_batches_leave_one_without_a_video(shared, alone):
    assert_close(shared / "uneven", alone / "uneven")


def test_a_run_that_one_process_began_is_ended_by_two_to_the_same_end(shared, alone):
    assert_close(shared / "stopped", alone / "still")
    assert read_run(shared / "stopped").finished


def test_a_run_that_two_stopped_and_two_continued_is_the_same_to_the_last_bit_with_dropout(shared):
    once, twice = weights(shared / "dropped"), weights(shared / "continued")
    assert [name for name in once if not torch.equal(once[name], twice[name])] == []
    assert not torch.equal(
        once["average words.project.1.weight"], weights(shared / "still")["average words.project.1.weight"]
    )


def test_one_process_with_two_shares_draws_what_two_processes_do(world, shared, tmp_path):
    train(world.cache, overrides=[in_ranks.SIZE, "train.accumulate=2"], out=tmp_path / "run", device="cpu")
    assert_close(tmp_path / "run", shared / "dropped")


def test_every_query_is_answered_once_and_as_by_one_process(world, shared, tmp_path):
    evaluate(shared / "still", split="test", out=tmp_path / "one", device="cpu")
    for name in ("predictions.jsonl", "metrics.json"):
        assert (shared / "evaluated" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


REFUSED = {
    "too-many": ("UsageError", "train.accumulate is 2 in each of 2 processes, more shares than a batch has videos"),
    "still": ("UsageError", "still: holds files already"),
    "of-two-minds": ("UsageError", "disagree about the settings"),
    "no-number": ("CostlError", "is not a finite number"),
    "damaged": ("CacheError", "process 1 of 2: a part is damaged."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_refuses_all_do_and_one_says_it(shared, name):
    first, second = (json.loads((shared / f"errors-{rank}.json").read_text())[name] for rank in (0, 1))
    kind, words = REFUSED[name]
    assert first[0] == second[0] == kind
    assert words in first[1]
    assert (first[2], second[2]) == (False, True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are told by Linux's /proc")
def test_no_thread_of_the_meeting_is_left_to_be_caught_by_the_interpreters_end(shared):
    for rank in (0, 1):
        names = json.loads((shared / f"threads-{rank}.json").read_text())
        assert names and not [name for name in names if "gloo" in name or "tcpstore" in name]


def test_what_is_refused_before_training_leaves_no_run(shared):
    assert not (shared / "too-many").exists() and not (shared / "of-two-minds").exists()


def wait_for(path: Path, processes: list[subprocess.Popen], seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until and all(process.poll() is None for process in processes), "ended too soon"
        time.sleep(0.05)


def long_training(world, folder: Path) -> list[subprocess.Popen]:
    settings = ["--set", "train.epochs=5000", "--set", "train.patience=5000", "--set", in_ranks.SIZE]
    command = ["train", "--cache", str(world.cache), "--out", str(folder), "--device", "cpu", *settings]
    processes = start("-m", "costl", *command)
    wait_for(folder / "last.safetensors", processes)
    return processes


def test_when_one_dies_the_other_ends_says_so_once_and_leaves_a_run_to_resume(world, tmp_path):
    processes = long_training(world, tmp_path / "run")
    processes[1].kill()
    codes, _, errors = end(processes)
    assert codes == [1, -signal.SIGKILL]
    assert errors[0].count("Error: ") == 1 and "another of the 2 processes has ended" in errors[0]
    assert "Traceback" not in errors[0]
    assert not read_run(tmp_path / "run").finished and len(rows(tmp_path / "run")) >= 1
    with pytest.raises(in_ranks.Stop):  # and it goes on
        resume(tmp_path / "run", device="cpu", progress=lambda _: (_ for _ in ()).throw(in_ranks.Stop()))


def test_an_interrupt_ends_all_with_its_code_and_one_message(world, tmp_path):
    processes = long_training(world, tmp_path / "run")
    for process in processes:
        process.send_signal(signal.SIGINT)
    codes, _, errors = end(processes)
    assert codes[0] in (1, 130) and codes[1] in (1, 130) and 130 in codes
    assert "".join(errors).count("Interrupted.") + "".join(errors).count("Error: ") == 1
    assert not read_run(tmp_path / "run").finished


def test_torchrun_starts_them_and_one_of_them_prints_the_run(world, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "costl", "train", "--cache"]
    settings = ["--set", "train.epochs=1", "--set", in_ranks.SIZE]
    run = subprocess.run(
        [sys.executable, *command, str(world.cache), "--out", str(tmp_path / "run"), "--device", "cpu", *settings],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(tmp_path / "run")]
    assert run.stderr.count("1 epochs; epoch 1 is kept") == 1
    assert read_run(tmp_path / "run").finished


def test_a_command_of_one_process_is_refused_and_said_once(monkeypatch):
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    first = CliRunner().invoke(main, ["cache", "status", "feats.h5"])
    assert first.exit_code == 2 and "costl cache runs in one process, and torchrun started 2" in first.stderr
    monkeypatch.setenv("RANK", "1")
    second = CliRunner().invoke(main, ["cache", "status", "feats.h5"])
    assert second.exit_code == 2 and second.stderr == ""


def test_without_a_launcher_a_process_is_alone():
    assert launched({"WORLD_SIZE": "8"}) == Launch()
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launched(told | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Launch(3, 4, 1, 2)


def test_each_process_of_a_machine_takes_its_own_gpu_and_none_has_too_few(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    places = [Ranks(Launch(rank, 2, rank, 2)) for rank in range(2)]
    assert [ranks.device(name) for ranks in places for name in ("auto", "cuda", "cpu")] == [
        *("cuda:0", "cuda:0", "cpu"),
        *("cuda:1", "cuda:1", "cpu"),
    ]
    assert Ranks().device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="names one device for the 2 processes"):
        places[0].device("cuda:1")
    with pytest.raises(UsageError, match=r"3 processes on .*, which has 2 GPUs"):
        Ranks(Launch(2, 3, 2, 3)).device("auto")

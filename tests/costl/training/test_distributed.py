"""Training in several real processes, over gloo on a CPU, gives the result of a single process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import distributed_training
import pytest
import torch
from click.testing import CliRunner
from preloaded import Preloaded

from costl.commands import main
from costl.evaluate import evaluate
from costl.pipeline.errors import UsageError
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.distributed import Ranks
from costl.training.launch import Launch, read_launch
from costl.training.run_folder import read_run

ROOT = Path(__file__).parents[3]
NO_DROPOUT = distributed_training.NO_DROPOUT


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment that torchrun sets."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    texts = {name: str(value) for name, value in variables.items()}
    return os.environ | texts | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*command: str, count: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [Preloaded(command, env=environment(rank, count, port), **pipes) for rank in range(count)]


def end(processes: list[subprocess.Popen], timeout_s: float = 200) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, standard outputs and standard errors, by rank."""
    try:
        outputs = [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return (
        [process.returncode for process in processes],
        [stdout for stdout, _ in outputs],
        [stderr for _, stderr in outputs],
    )


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model_weights, meta = load_checkpoint(folder, "last")
    return model_weights | {f"average {name}": value for name, value in meta["average"].items()}


def stop_within_epoch_two(progress) -> None:
    if "epoch 1:" in progress.detail and progress.done < progress.total:
        raise distributed_training.Stop


@pytest.fixture(scope="module")
def single(world, tmp_path_factory, no_final_report) -> Path:
    """The runs of a single process, and `stopped`, which ended in its second epoch."""
    folder = tmp_path_factory.mktemp("single")
    run = {"device": "cpu"}
    for name, changes in distributed_training.COMPARED.items():
        train(world.cache, overrides=[*NO_DROPOUT, *changes], out=folder / name, **run)
    with pytest.raises(distributed_training.Stop):
        train(world.cache, overrides=NO_DROPOUT, out=folder / "stopped", progress=stop_within_epoch_two, **run)
    return folder


@pytest.fixture(scope="module")
def shared(world, single, tmp_path_factory) -> Path:
    """The same runs by two processes."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(single / "stopped", folder / "stopped")
    processes = start(distributed_training.__file__, str(world.cache), str(folder), str(folder / "stopped"))
    codes, _, errors = end(processes)
    assert codes == [0, 0], "\n".join(errors)
    return folder


def assert_close(folder: Path, expected: Path) -> None:
    """Losses are equal up to rounding, weights up to its effect on a few steps of Adam, validation to the last decimal.

    Adam divides a gradient by its own size. A weight whose gradient is only rounding error (a bias before a softmax) moves
    by up to the learning rate of 5e-4 in each step, in a random direction.
    """
    for row, whole in zip(rows(folder), rows(expected), strict=True):
        assert row["losses"] == pytest.approx(whole["losses"], rel=1e-5, abs=1e-7)
        assert row["val"] == pytest.approx(whole["val"], abs=0.011)
    a = weights(folder)
    b = weights(expected)
    assert a.keys() == b.keys()
    difference = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    assert difference.quantile(0.99) < 1e-6 and difference.max() < 1e-3


@pytest.mark.parametrize("name", distributed_training.COMPARED)
def test_two_processes_train_as_one_does_with_the_same_batches(shared, single, name):
    assert_close(shared / name, single / name)


def test_two_processes_resume_a_run_of_one_to_the_same_result(shared, single):
    assert_close(shared / "stopped", single / "costl")
    assert read_run(shared / "stopped").finished


def test_two_processes_resume_with_dropout_to_the_same_bits(shared):
    whole = weights(shared / "dropout")
    resumed = weights(shared / "continued")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert not torch.equal(
        whole["average word_projection.project.1.weight"],
        weights(shared / "costl")["average word_projection.project.1.weight"],
    )


def test_two_processes_predict_every_query_once_as_one_process_does(world, shared, tmp_path):
    evaluate(shared / "costl", split="test", out=tmp_path / "one", device="cpu")
    for name in ("predictions.jsonl", "metrics.json"):
        assert (shared / "evaluated" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


REFUSED = {
    "too-many": (
        "UsageError",
        "2 processes are more than a batch can be shared by: train.batch_size is 1. Start at most 1 (torchrun",
    ),
    "costl": ("UsageError", "costl: holds files already"),
    "other-settings": ("UsageError", "disagree about the settings"),
    "non-finite": ("CostlError", "is not a finite number"),
    "damaged": ("CacheError", "process 1 of 2: a part is damaged."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_processes_refuse_and_one_prints_the_error(shared, name):
    first, second = (json.loads((shared / f"errors-{rank}.json").read_text())[name] for rank in (0, 1))
    error_type, message = REFUSED[name]
    assert first[0] == second[0] == error_type
    assert message in first[1]
    assert (first[2], second[2]) == (False, True)  # whether another process prints it


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads in Linux's /proc")
def test_no_thread_of_the_process_group_is_left(shared):
    for rank in (0, 1):
        names = json.loads((shared / f"threads-{rank}.json").read_text())
        assert names and not [name for name in names if "gloo" in name or "tcpstore" in name]


def test_a_refused_training_leaves_no_run_folder(shared):
    assert not (shared / "too-many").exists() and not (shared / "other-settings").exists()


def wait_for(path: Path, processes: list[subprocess.Popen], seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until and all(process.poll() is None for process in processes), "ended too soon"
        time.sleep(0.05)


def long_training(world, folder: Path) -> list[subprocess.Popen]:
    settings = ["--set", "train.epochs=5000", "--set", "train.patience=5000", "--set", distributed_training.SIZE]
    command = ["train", "--cache", str(world.cache), "--out", str(folder), "--device", "cpu", *settings]
    processes = start("-m", "costl", *command)
    wait_for(folder / "last.safetensors", processes)
    return processes


def test_when_a_process_dies_the_other_ends_and_the_run_can_be_resumed(world, tmp_path):
    processes = long_training(world, tmp_path / "run")
    processes[1].kill()
    codes, _, errors = end(processes)
    assert codes == [1, -signal.SIGKILL]
    assert errors[0].count("Error: ") == 1 and "another of the 2 processes has ended" in errors[0]
    assert "Traceback" not in errors[0]
    assert not read_run(tmp_path / "run").finished and len(rows(tmp_path / "run")) >= 1
    with pytest.raises(distributed_training.Stop):  # and it goes on
        resume(tmp_path / "run", device="cpu", progress=lambda _: (_ for _ in ()).throw(distributed_training.Stop()))


def test_an_interrupt_ends_all_processes_with_one_message(world, tmp_path):
    processes = long_training(world, tmp_path / "run")
    for process in processes:
        process.send_signal(signal.SIGINT)
    codes, _, errors = end(processes)
    assert codes[0] in (1, 130) and codes[1] in (1, 130) and 130 in codes
    assert "".join(errors).count("Interrupted.") + "".join(errors).count("Error: ") == 1
    assert not read_run(tmp_path / "run").finished


def test_torchrun_starts_both_processes_and_one_prints_the_run(world, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "costl", "train", "--cache"]
    settings = ["--set", "train.epochs=1", "--set", distributed_training.SIZE]
    command += [world.cache, "--out", tmp_path / "run", "--device", "cpu", *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Preloaded(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert stdout.split() == [str(tmp_path / "run")]
    assert stderr.count("1 epochs; epoch 1 is kept") == 1
    assert read_run(tmp_path / "run").finished


def test_torchrun_with_a_single_process_command_is_refused_once(monkeypatch):
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    first = CliRunner().invoke(main, ["cache", "status", "feats.h5"])
    assert first.exit_code == 2 and "costl cache runs in one process, and torchrun started 2" in first.stderr
    monkeypatch.setenv("RANK", "1")
    second = CliRunner().invoke(main, ["cache", "status", "feats.h5"])
    assert second.exit_code == 2 and second.stderr == ""


def test_without_a_launcher_there_is_a_single_process():
    assert read_launch({"WORLD_SIZE": "8"}) == Launch()
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert read_launch(environment | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Launch(3, 4, 1, 2)


def test_each_process_of_a_machine_uses_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    both = [Ranks(rank, 2, rank, 2) for rank in range(2)]
    assert [ranks.device(name) for ranks in both for name in ("auto", "cuda", "cpu")] == [
        *("cuda:0", "cuda:0", "cpu"),
        *("cuda:1", "cuda:1", "cpu"),
    ]
    assert Ranks().device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match="names one device for the 2 processes"):
        both[0].device("cuda:1")
    with pytest.raises(UsageError, match=r"3 processes on .*, which has 2 GPUs"):
        Ranks(2, 3, 2, 3).device("auto")

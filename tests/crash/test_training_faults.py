"""Kills, parallel runs and disk errors during training and evaluation: nothing reported is lost, and the same command
ends with the same bytes.

More kills, and a disk error at every call:

    python -m pytest tests/crash/test_training_faults.py -m long -n 0
"""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finish, run_contents, start_command, wait_for

from costl.evaluate import evaluate
from costl.pipeline.errors import CacheError, CostlError
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import read_run

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
SETTINGS = ("spatial.top_k=2", "train.patience=99")
EPOCHS = 8  # enough that a kill comes before the end


def settings(epochs: int) -> list[str]:
    return [f"train.epochs={epochs}", *SETTINGS]


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory) -> Path:
    """A run without any kill."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(world.cache, overrides=settings(EPOCHS), out=folder, device="cpu")
    return folder


def rows_in(run: Path) -> int:
    rows = run / "metrics.jsonl"
    return rows.read_text().count("\n") if rows.exists() else 0


def kill_training(*arguments: object, home: Path, rows: int, after_s: float) -> None:
    """Sends SIGKILL `after_s` seconds after `rows` epochs have written their row."""
    process = start_command("train", *arguments, "--device", "cpu", cwd=home)
    wait_for(lambda: rows_in(home / "run") >= rows or process.poll() is not None)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the command ended before the kill"


def kill_and_resume(world, home: Path, *, kills: int, seed: int) -> list[int]:
    """Kills a training `kills` times, resumes it each time; -> the epochs in the last checkpoint after each kill."""
    rng = random.Random(seed)
    saved_epochs = []
    arguments = start_arguments(world)
    for rows in sorted(rng.sample(range(1, EPOCHS - 2), kills)):
        kill_training(*arguments, home=home, rows=rows, after_s=rng.uniform(0, 0.05))
        saved_epochs.append(check_killed_run(home / "run"))
        assert saved_epochs[-1] >= rows - 1, "an epoch writes its row first, then its checkpoint"
        arguments = ["--resume", "run"]
    torch.manual_seed(99)
    resume(home / "run", device="cpu")
    return saved_epochs


def start_arguments(world) -> list[object]:
    overrides = [argument for setting in settings(EPOCHS) for argument in ("--set", setting)]
    return ["--cache", world.cache, "--out", "run", *overrides]


def check_killed_run(run: Path) -> int:
    """Checks that the run is unfinished and its checkpoints can be read; -> the epochs in the last one."""
    assert not read_run(run).finished
    for name in ("best", "last"):
        if (run / f"{name}.safetensors").exists():
            load_checkpoint(run, name)
    if not (run / "last.safetensors").exists():
        return 0
    return load_checkpoint(run, "last")[1]["counts"]["epoch"]


def differences(run: Path, truth: Path) -> list[str]:
    contents = run_contents(run)
    expected = run_contents(truth)
    return [name for name in expected if contents.get(name) != expected[name]]


@pytest.mark.promise(11)
@pytest.mark.promise(12)
def test_a_training_killed_and_resumed_ends_with_the_same_bits(
    world, uninterrupted, tmp_path, report_figure
):
    saved_epochs = kill_and_resume(world, tmp_path, kills=2, seed=5)
    report_figure(f"training: {len(saved_epochs)} kills, after which {saved_epochs} of {EPOCHS} epochs were saved")
    assert saved_epochs == sorted(saved_epochs), "a saved epoch was lost"
    assert differences(tmp_path / "run", uninterrupted) == []
    assert not list((tmp_path / "run").glob(".*")), "a temporary file is left"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(11)
@pytest.mark.promise(12)
@pytest.mark.parametrize("seed", range(5))
def test_trainings_killed_at_many_seeded_moments_end_with_the_same_bits(
    world, uninterrupted, tmp_path, seed, report_figure
):
    saved_epochs = kill_and_resume(world, tmp_path, kills=4, seed=seed)
    report_figure(f"training: {len(saved_epochs)} kills, after which {saved_epochs} of {EPOCHS} epochs were saved")
    assert differences(tmp_path / "run", uninterrupted) == []


@pytest.mark.promise(12)
def test_an_evaluation_killed_and_repeated_ends_with_the_same_bytes(uninterrupted, tmp_path, real_pictures):
    evaluate(uninterrupted, split="test", out=tmp_path / "truth", device="cpu")
    truth = {path.name: path.read_bytes() for path in (tmp_path / "truth").iterdir()}
    out = tmp_path / "out"
    rng = random.Random(2)
    process = start_command("evaluate", "--run", uninterrupted, "--out", out, "--device", "cpu", cwd=tmp_path)
    wait_for(lambda: (out.exists() and any(out.iterdir())) or process.poll() is not None)
    time.sleep(rng.uniform(0, 0.02))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the command ended before the kill"
    left = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}
    assert left.items() <= truth.items()
    evaluate(uninterrupted, split="test", out=out, device="cpu")
    assert {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")} == truth


@pytest.mark.promise(5)
def test_a_second_training_in_a_folder_is_refused_and_changes_nothing(world, tmp_path):
    first = start_command("train", *start_arguments(world), "--device", "cpu", cwd=tmp_path)
    wait_for(lambda: rows_in(tmp_path / "run") or first.poll() is not None)
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot finish in the meantime
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    message = r"run: another costl train is writing here\. Wait for it, or choose another --out\."
    try:
        with pytest.raises(CacheError, match=message):
            resume(tmp_path / "run", device="cpu")
        with pytest.raises(CacheError, match=message):
            train(world.cache, overrides=settings(1), out=tmp_path / "run", device="cpu")
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    code, _, err = finish(first)
    assert code == 0 and read_run(tmp_path / "run").finished, err


def test_a_training_killed_at_its_start_is_begun_again(world, tmp_path):
    folder = tmp_path / "run"
    train(world.cache, overrides=settings(1), out=folder, device="cpu")
    config = (folder / "config.yaml").read_bytes()
    for number, (text, is_started) in enumerate([(config, True), (b"other: settings\n", False)]):
        other = tmp_path / str(number)
        other.mkdir()
        (other / "config.yaml").write_bytes(text)
        (other / ".run.json.123.part").write_bytes(b"{")
        if is_started:
            train(world.cache, overrides=settings(1), out=other, device="cpu")
            assert read_run(other).finished and not list(other.glob(".*"))
        else:
            with pytest.raises(CostlError, match="holds files already"):
                train(world.cache, overrides=settings(1), out=other, device="cpu")
            assert (other / "config.yaml").read_bytes() == text


# Disk errors


@contextmanager
def failing_disk(number: int, code: int) -> Iterator[list[str]]:
    """The `number`-th call that writes and all later ones fail, as on a full disk; yields the names of the calls."""
    calls: list[str] = []

    def wrap(call: Callable, name: str) -> Callable:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
            if name != "open" or "w" in mode:
                calls.append(name)
                if len(calls) >= number:
                    raise OSError(code, os.strerror(code))
            return call(*arguments, **options) if name != "fsync" else None  # these tests lose no power

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "fsync"), (io, "open")):
            patch.setattr(owner, name, wrap(getattr(owner, name), name))
        yield calls


def complete(folder: Path, cache: Path, epochs: int) -> None:
    if (folder / "summary.json").exists():
        return  # only the fsync of its folder failed: nothing is left to do
    if (folder / "run.json").exists():
        resume(folder, device="cpu")
    else:
        train(cache, overrides=settings(epochs), out=folder, device="cpu")


def fails_and_completes(number: int, code: int, world, home: Path, truth: Path) -> bool:
    """Whether the `number`-th call was reached: its error must have a message, and the run must be completed."""
    with failing_disk(number, code) as calls:
        try:
            train(world.cache, overrides=settings(2), out=home / "run", device="cpu")
        except CostlError as error:
            assert f"cannot be written ({os.strerror(code)})" in str(error), calls
        else:
            return False
    left = [path for path in (home / "run").rglob("*") if path.name.startswith(".")]
    assert left == [], "a temporary file is left"
    for path in (home / "run").glob("*.safetensors"):
        load_checkpoint(home / "run", path.stem)
    complete(home / "run", world.cache, 2)
    assert differences(home / "run", truth) == [], (number, calls)
    return True


@pytest.fixture(scope="module")
def short(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "run"
    train(world.cache, overrides=settings(2), out=folder, device="cpu")
    return folder


@pytest.mark.promise(12)
@pytest.mark.parametrize(
    ("number", "code"), [(2, errno.EACCES), (13, errno.ENOSPC), (19, errno.EIO), (30, errno.ENOSPC)]
)
def test_a_disk_error_stops_a_training_which_completes_later(
    world, short, tmp_path, number, code
):
    assert fails_and_completes(number, code, world, tmp_path, short)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(12)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_error_at_any_call_stops_a_training_which_completes_later(world, short, tmp_path, code, report_figure):
    number = 1
    while fails_and_completes(number, code, world, tmp_path / str(number), short):
        number += 1
    assert number > 40
    report_figure(f"{errno.errorcode[code]}: an error at each of {number - 1} calls of a training")


@pytest.mark.promise(12)
def test_a_disk_error_stops_an_evaluation_and_leaves_whole_files(short, tmp_path):
    evaluate(short, split="test", out=tmp_path / "truth", device="cpu")
    truth = {path.name: path.read_bytes() for path in (tmp_path / "truth").iterdir()}
    for number, code in ((1, errno.EACCES), (7, errno.ENOSPC), (14, errno.EIO)):
        out = tmp_path / str(number)
        with failing_disk(number, code), pytest.raises(CostlError, match="cannot be written"):
            evaluate(short, split="test", out=out, device="cpu")
        left = {path.name: path.read_bytes() for path in out.iterdir()}
        assert left.items() <= truth.items() and len(left) < len(truth)

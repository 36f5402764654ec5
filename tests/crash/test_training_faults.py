"""Training and evaluation killed, stopped beside each other and refused by the disk: nothing reported is lost, and the
same command again ends with the same bytes.

More kills, and every call of the disk in turn:

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
from processes import finish, lasting, start, wait_for

from costl.evaluate import evaluate
from costl.pipeline.errors import CacheError, CostlError
from costl.train import resume, train
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import read_run

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
SETTINGS = ("spatial.top_k=2", "train.patience=99")
LONG = 12  # epochs, so that a kill finds it at work


def settings(epochs: int) -> list[str]:
    return [f"train.epochs={epochs}", *SETTINGS]


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(world.cache, overrides=settings(LONG), out=folder, device="cpu")
    return folder


def rows_in(run: Path) -> int:
    rows = run / "metrics.jsonl"
    return rows.read_text().count("\n") if rows.exists() else 0


def kill_training(*arguments: object, home: Path, rows: int, after_s: float) -> None:
    """By SIGKILL, a moment after so many epochs have left their row."""
    process = start("train", *arguments, "--device", "cpu", cwd=home)
    wait_for(lambda: rows_in(home / "run") >= rows or process.poll() is not None)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def kill_and_resume(world, home: Path, *, kills: int, seed: int) -> list[int]:
    """Killed so often, and resumed in a process of its own each time; -> the epochs that were kept each time."""
    dice, kept = random.Random(seed), []
    begin = ["--cache", world.cache, "--out", "run", *(word for value in settings(LONG) for word in ("--set", value))]
    for number, rows in enumerate(sorted(dice.sample(range(1, LONG - 2), kills))):
        kill_training(
            *(begin if number == 0 else ["--resume", "run"]), home=home, rows=rows, after_s=dice.uniform(0, 0.05)
        )
        assert not read_run(home / "run").finished
        for name in ("best", "last"):
            if (home / "run" / f"{name}.safetensors").exists():
                load_checkpoint(home / "run", name)
        saved = (home / "run" / "last.safetensors").exists()
        kept.append(load_checkpoint(home / "run", "last")[1]["counts"]["epoch"] if saved else 0)
        assert kept[-1] >= rows - 1, "the row is written first, then the checkpoint"
    torch.manual_seed(99)
    resume(home / "run", device="cpu")
    return kept


def differs(found: Path, truth: Path) -> list[str]:
    here, there = lasting(found), lasting(truth)
    return [name for name in there if here.get(name) != there[name]]


@pytest.mark.promise(11)
@pytest.mark.promise(12)
def test_a_training_killed_at_seeded_moments_and_resumed_ends_with_the_bits_of_one_that_nobody_disturbed(
    world, undisturbed, tmp_path, tell
):
    kept = kill_and_resume(world, tmp_path, kills=2, seed=5)
    tell(f"training: {len(kept)} kills survived, with {kept} of {LONG} epochs kept")
    assert kept == sorted(kept), "an epoch that was saved was lost"
    assert differs(tmp_path / "run", undisturbed) == []
    assert not list((tmp_path / "run").glob(".*")), "what was half-written is swept away"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(11)
@pytest.mark.promise(12)
@pytest.mark.parametrize("seed", range(5))
def test_trainings_killed_at_many_seeded_moments_end_with_the_same_bits(world, undisturbed, tmp_path, seed, tell):
    kept = kill_and_resume(world, tmp_path, kills=4, seed=seed)
    tell(f"training: {len(kept)} kills survived, with {kept} of {LONG} epochs kept")
    assert differs(tmp_path / "run", undisturbed) == []


@pytest.mark.promise(12)
def test_an_evaluation_killed_at_seeded_moments_leaves_whole_files_and_ends_with_the_same_bytes(undisturbed, tmp_path):
    evaluate(undisturbed, split="test", out=tmp_path / "truth", device="cpu")
    truth = {path.name: path.read_bytes() for path in (tmp_path / "truth").iterdir()}
    out, dice = tmp_path / "out", random.Random(2)
    process = start("evaluate", "--run", undisturbed, "--out", out, "--device", "cpu", cwd=tmp_path)
    wait_for(lambda: (out.exists() and any(out.iterdir())) or process.poll() is not None)
    time.sleep(dice.uniform(0, 0.02))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    left = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}
    assert left.items() <= truth.items()
    evaluate(undisturbed, split="test", out=out, device="cpu")
    assert {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")} == truth


@pytest.mark.promise(5)
def test_a_second_training_in_one_folder_is_refused_while_the_first_is_alive_and_hurts_nothing(world, tmp_path):
    begin = ["--cache", world.cache, "--out", "run", *(word for value in settings(LONG) for word in ("--set", value))]
    first = start("train", *begin, "--device", "cpu", cwd=tmp_path)
    wait_for(lambda: rows_in(tmp_path / "run") or first.poll() is not None)
    os.kill(first.pid, signal.SIGSTOP)  # it cannot finish meanwhile
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    said = r"run: another costl train is writing here\. Wait for it, or choose another --out\."
    try:
        with pytest.raises(CacheError, match=said):
            resume(tmp_path / "run", device="cpu")
        with pytest.raises(CacheError, match=said):
            train(world.cache, overrides=settings(1), out=tmp_path / "run", device="cpu")
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    code, _, err = finish(first)
    assert code == 0 and read_run(tmp_path / "run").finished, err


def test_a_start_that_was_killed_before_it_was_a_run_is_begun_again_and_other_files_are_not_touched(world, tmp_path):
    folder = tmp_path / "run"
    train(world.cache, overrides=settings(1), out=folder, device="cpu")
    config = (folder / "config.yaml").read_bytes()
    for number, (text, begun) in enumerate([(config, True), (b"somebody: else\n", False)]):
        other = tmp_path / str(number)
        other.mkdir()
        (other / "config.yaml").write_bytes(text)
        (other / ".run.json.123.part").write_bytes(b"{")
        if begun:
            train(world.cache, overrides=settings(1), out=other, device="cpu")
            assert read_run(other).finished and not list(other.glob(".*"))
        else:
            with pytest.raises(CostlError, match="holds files already"):
                train(world.cache, overrides=settings(1), out=other, device="cpu")
            assert (other / "config.yaml").read_bytes() == text


# A disk that refuses


@contextmanager
def failing(number: int, code: int) -> Iterator[list[str]]:
    """The `number`-th of all the calls by which a run folder comes to be fails, and every later one."""
    made: list[str] = []

    def step(call: Callable, name: str) -> Callable:
        def instead(*arguments: Any, **options: Any) -> Any:
            writes = name != "open" or "w" in (arguments[1] if len(arguments) > 1 else options.get("mode", "r"))
            if writes:
                made.append(name)
                if len(made) >= number:
                    raise OSError(code, os.strerror(code))
            return call(*arguments, **options) if name != "fsync" else None  # nobody pulls the plug here

        return instead

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "fsync"), (io, "open")):
            patch.setattr(owner, name, step(getattr(owner, name), name))
        yield made


def complete(folder: Path, cache: Path, epochs: int) -> None:
    if (folder / "summary.json").exists():
        return  # only that its name is on the disk was refused: nothing is left to do
    if (folder / "run.json").exists():
        resume(folder, device="cpu")
    else:
        train(cache, overrides=settings(epochs), out=folder, device="cpu")


def refuse_at(number: int, code: int, world, home: Path, truth: Path) -> bool:
    """Whether the disk refused: then it is told in a sentence, nothing is half, and the rest is made when there is room."""
    with failing(number, code) as made:
        try:
            train(world.cache, overrides=settings(2), out=home / "run", device="cpu")
        except CostlError as error:
            assert f"cannot be written ({os.strerror(code)})" in str(error), made
        else:
            return False
    left = [path for path in (home / "run").rglob("*") if path.name.startswith(".")]
    assert left == [], "nothing half-written stays"
    for path in (home / "run").glob("*.safetensors"):
        load_checkpoint(home / "run", path.stem)
    complete(home / "run", world.cache, 2)
    assert differs(home / "run", truth) == [], (number, made)
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
def test_a_disk_that_refuses_stops_a_training_in_a_sentence_and_the_rest_is_made_later(
    world, short, tmp_path, number, code
):
    assert refuse_at(number, code, world, tmp_path, short)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.promise(12)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_that_refuses_at_any_call_stops_a_training_in_a_sentence(world, short, tmp_path, code, tell):
    number = 1
    while refuse_at(number, code, world, tmp_path / str(number), short):
        number += 1
    assert number > 40
    tell(f"{errno.errorcode[code]}: a disk that refuses at each of {number - 1} calls of a training")


@pytest.mark.promise(12)
def test_a_disk_that_refuses_stops_an_evaluation_and_leaves_whole_files(short, tmp_path):
    evaluate(short, split="test", out=tmp_path / "truth", device="cpu")
    truth = {path.name: path.read_bytes() for path in (tmp_path / "truth").iterdir()}
    for number, code in ((1, errno.EACCES), (7, errno.ENOSPC), (14, errno.EIO)):
        out = tmp_path / str(number)
        with failing(number, code), pytest.raises(CostlError, match="cannot be written"):
            evaluate(short, split="test", out=out, device="cpu")
        left = {path.name: path.read_bytes() for path in out.iterdir()}
        assert left.items() <= truth.items() and len(left) < len(truth)

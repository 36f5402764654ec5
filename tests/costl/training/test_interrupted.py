"""Ctrl-C and SIGTERM at any moment: every finished step is saved, and resuming ends with the bits of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from preloaded import Preloaded

from costl import train as module
from costl.data.queries import read_queries
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import CacheError
from costl.train import resume, train
from costl.training import objective, step
from costl.training.checkpoint import load_checkpoint
from costl.training.run_folder import read_rows, read_run
from costl.training.setup import Training
from costl.training.signals import defer_signals

pytestmark = pytest.mark.usefixtures("no_final_report")
ROOT = Path(__file__).parents[3]
# The function at whose n-th call a signal arrives, in the order of a step and of the end of an epoch.
MOMENTS = {
    "before the first step": ("total_loss", 1),
    "between forward and backward": ("total_loss", 3),
    "between backward and step": ("may_clip", 3),
    "within the optimizer's step": ("adam", 3),
    "between step and average": ("update_ema", 2),
    "in the last step of an epoch": ("total_loss", 4),
    "before validation": ("_validate", 1),
    "after validation": ("_score", 1),
    "while the state is saved": ("save_state", 1),
}
SETTINGS = ["train.epochs=2", "train.batch_size=6", "train.splice=0.5"]  # four steps each
BY_ONES = ["train.epochs=1", "train.batch_size=1"]


def final_state(folder: Path) -> dict[str, object]:
    """Everything in a run except for the times."""
    weights, meta = load_checkpoint(folder, "last")
    best, about = load_checkpoint(folder, "best")
    rows = [
        {name: value for name, value in row.items() if name not in ("seconds", "waiting")}
        for row in read_rows(read_run(folder), up_to=meta["counts"]["epoch"])
    ]
    meta["counts"].pop("seconds")
    meta["random"] = meta["random"]["torch"]  # training draws from torch only
    return {"weights": weights, "best": best, "about": about, "rows": rows, **meta}


def same(a: object, b: object) -> bool:
    """Whether two nests are equal to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> dict[str, object]:
    """Two epochs without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(world.cache, overrides=SETTINGS, out=folder, device="cpu")
    return final_state(folder)


def send_signal(monkeypatch: pytest.MonkeyPatch, name: str, nth: int, number: int) -> None:
    """Sends a signal to this process at the n-th call of a function."""
    owner, attribute = {
        "adam": (torch.optim.AdamW, "step"),
        "may_clip": (torch.nn.utils, "clip_grad_norm_"),
        "_score": (Training, "validate"),
        "_validate": (Training, "validate"),
        "total_loss": (objective, "total_loss"),
        "update_ema": (step, "update_ema"),
    }.get(name, (module, name))
    real = getattr(owner, attribute)
    calls = []

    def with_signal(*args, **options):
        calls.append(name)
        if len(calls) == nth and name != "_score":
            os.kill(os.getpid(), number)
        result = real(*args, **options)
        if len(calls) == nth and name == "_score":
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(owner, attribute, with_signal)


@pytest.fixture(autouse=True)
def sigterm():
    """SIGTERM interrupts like Ctrl-C, as it does in the command line."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_stopped_at_any_moment_resumes_to_the_same_bits(world, whole, tmp_path, monkeypatch, moment):
    number = signal.SIGTERM if len(moment) % 2 else signal.SIGINT
    with monkeypatch.context() as patch:
        send_signal(patch, *MOMENTS[moment], number)
        with pytest.raises(KeyboardInterrupt, match=r"Every step is kept; costl train --resume .*run goes on"):
            train(world.cache, overrides=SETTINGS, out=tmp_path / "run", device="cpu")
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    torch.manual_seed(99)  # resuming must not depend on it
    resume(tmp_path / "run", device="cpu")
    ended = final_state(tmp_path / "run")
    assert [name for name in whole if not same(whole[name], ended[name])] == []


def test_a_run_stopped_in_every_second_step_ends_with_the_same_bits(world, whole, tmp_path, monkeypatch):
    stops = 0
    start = lambda: train(world.cache, overrides=SETTINGS, out=tmp_path / "run", device="cpu")  # noqa: E731
    while True:
        with monkeypatch.context() as patch:
            send_signal(patch, "total_loss", 3, signal.SIGINT)
            try:
                start()
                break
            except KeyboardInterrupt:
                stops += 1
                _, meta = load_checkpoint(tmp_path / "run", "last")
                assert meta["counts"]["step"] == 2 * stops
        start = lambda: resume(tmp_path / "run", device="cpu")  # noqa: E731
    assert stops == (whole["counts"]["step"] - 1) // 2  # the third step of each start is the one that stops
    ended = final_state(tmp_path / "run")
    assert [name for name in whole if not same(whole[name], ended[name])] == []


def test_resuming_does_not_read_finished_steps_again(world, tmp_path, monkeypatch):
    done = []
    train_step = module.train_step

    def step_and_count(state, objective, batch, config, **options) -> None:
        train_step(state, objective, batch, config, **options)
        done.extend(query.qid for query in batch.queries)

    monkeypatch.setattr(module, "train_step", step_and_count)
    with monkeypatch.context() as patch:
        send_signal(patch, "total_loss", 8, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(world.cache, overrides=["train.epochs=1", "train.batch_size=2"], out=tmp_path / "run", device="cpu")
    _, meta = load_checkpoint(tmp_path / "run", "last")
    assert (meta["counts"]["epoch"], meta["counts"]["step"], meta["midway"]["batches"]) == (0, 7, 7)
    resume(tmp_path / "run", device="cpu")
    assert sorted(done) == sorted(query.qid for query in read_queries(CacheReader(world.cache), "train"))


def test_a_damaged_part_costs_no_finished_step(world, whole, tmp_path, monkeypatch):
    batches = []
    read = module.Loader.batches

    def damaged(self, plan):
        for batch in read(self, plan):
            if len(batches) == 3:
                raise CacheError("feats.h5.parts/a.h5: damaged.")
            batches.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(module.Loader, "batches", damaged)
        with pytest.raises(CacheError, match=r"^feats\.h5\.parts/a\.h5: damaged\.$"):
            train(world.cache, overrides=SETTINGS, out=tmp_path / "run", device="cpu")
    resume(tmp_path / "run", device="cpu")
    ended = final_state(tmp_path / "run")
    assert [name for name in whole if not same(whole[name], ended[name])] == []


@pytest.fixture(scope="module")
def by_ones(world, tmp_path_factory) -> dict[str, object]:
    """An epoch of 24 steps without interruption."""
    folder = tmp_path_factory.mktemp("runs") / "by_ones"
    train(world.cache, overrides=BY_ONES, out=folder, device="cpu")
    return final_state(folder)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("number", "wait_s", "workers"), [(signal.SIGTERM, 0.0, 0), (signal.SIGINT, 0.1, 1)]
)
def test_the_command_stops_soon_and_resumes_to_the_same_bits(world, by_ones, tmp_path, number, wait_s, workers):
    options = [option for setting in (*BY_ONES, f"train.workers={workers}") for option in ("--set", setting)]
    command = ["-m", "costl", "train", "--cache", world.cache, "--out", tmp_path / "run", "--device", "cpu", *options]
    with Preloaded(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None and process.stderr.readline() == "train ...\n"  # the first step is done
            time.sleep(wait_s)
            started = time.monotonic()
            os.killpg(process.pid, number)  # to all processes of the command, as a terminal and a scheduler do
            _, stderr = process.communicate(timeout=60)
            took_s = time.monotonic() - started
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    assert took_s < 10  # an idle machine takes less than 2
    assert stderr.startswith("Interrupted. Every step is kept; costl train --resume"), stderr
    assert "Traceback" not in stderr, stderr
    _, meta = load_checkpoint(tmp_path / "run", "last")
    assert meta["midway"]["batches"] > 0
    resume(tmp_path / "run", device="cpu")
    ended = final_state(tmp_path / "run")
    assert [name for name in by_ones if not same(by_ones[name], ended[name])] == []


def test_signals_are_raised_after_the_deferring_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done.append("all of it")
        done.append("and no more")
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_deferring_block_is_raised():
    with pytest.raises(ValueError, match="the disk is full"), defer_signals():
        raise ValueError("the disk is full")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

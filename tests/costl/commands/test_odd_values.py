"""Odd values for every option and argument of every command: only our own errors come out."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from preloaded import Preloaded
from test_help import commands

from costl.commands import main
from costl.pipeline.errors import UsageError

NOT_UTF8 = "caf\udce9"  # how Python names the byte 0xe9 of an argument
PATHS = ("", " ", "x" * 300, "x" * 5000, NOT_UTF8, "犬" * 90, "-", "--", "videos", "feats.h5", "gone/gone", "a\nb", "/")
PATHS += (".", "~nobody/x", "/dev/null", "/dev/null/x")
NUMBERS = ("", "nan", "inf", "1e999", "-1", "0", "0.0001", str(2**63), "9" * 400, "0x10", "１２", "1/0", NOT_UTF8)
TEXTS = ("", " ", "--", "=", "=3", "a=b=c", "a=gone", "x" * 300, NOT_UTF8, "犬" * 90, "a\nb", "hf://", "None", "1/0", "{")
SETTINGS = ("train.epochs", "train.epochs=1e400", "train.epochs=", "train.epochs=１２", "x.y.z=1", "train=1", "model.width=.inf")
SETTINGS += (f"train.seed={10**400}", f"train.epochs={NOT_UTF8}", "train.epochs=[1", "data.domain=!!python/object:os.system x")
DEVICES = ("cuda:99", "cuda:x", "cuda:" + "9" * 30, "mps", "tpu", "meta", "cpu,", ",", "auto:1", "CPU", "１２")
ADDRESSES = ("=", "tcp://", "tcp://127.0.0.1:" + "9" * 30)  # few, since each starts a client of Dask
# Arguments with which each command goes on until it would start to work.
USUAL = {
    "extract": "--videos videos --out new.h5",
    "train": "--cache feats.h5 --out new",
    "evaluate": "--run run --split val --out new",
    "search": "dog --cache gone.h5",
    "predict": "videos/a.mp4 dog --run run --cache-dir new",
    "demo": "--run gone",
    "label": "--videos videos --run gone",
    "report": "run --split val --out new",
    "quickstart": "--out new",
    "prepare": "charades --annotations videos --out new --allow-missing-videos",
    "reproduce": "charades --annotations videos --features a=videos --text videos --out new",
    "data sample": "new",
    "data models": "ViT-B-32 --measure",
    "data import": "--annotations videos --features a=videos --text videos --out new.h5",
    "data export": "run new",
    "cache status": "feats.h5",
    "cache verify": "feats.h5",
    "cache inspect": "feats.h5",
    "cache pack": "feats.h5 --out new.h5",
    "cache unpack": "feats.h5 --out new.h5",
    "cache merge": "new.h5 feats.h5",
    "cache gc": "feats.h5",
    "cache add-queries": "feats.h5 --annotations wrong.jsonl",
    "study ablate": "--cache feats.h5 --split val --out new",
    "study repeat": "--cache feats.h5 --split val --out new",
    "study compare": "gone gone --truth videos/train.jsonl",
    "study diagnose": "--cache feats.h5",
    "bench extract": "--quick",
    "bench decode": "--quick",
    "bench cache": "",
    "bench index": "",
    "bench train": "--quick",
    "bench metrics": "",
    "bench search": "",
}
WORK = (
    "costl.pipeline.extract:_load_encoders",
    "costl.pipeline.add_queries:reload_encoder",
    "costl.pipeline.world.write_world:Parallel",
    "costl.pipeline.encode.catalog:_milliseconds",
    "costl.training.setup:fresh_state",
    "costl.experiments.ablate:untrained_baselines",
    "costl.experiments.repeat:train_and_score",
    "costl.pipeline.bench.extract:bench_extract",
    "costl.pipeline.bench.decode:bench_decode",
    "costl.pipeline.bench.cache:bench_cache",
    "costl.bench.index:bench_index",
    "costl.bench.train:bench_train",
    "costl.bench.metrics:bench_metrics",
    "costl.bench.search:bench_search",
)
LEAVES = {" ".join(path): command for path, command in commands() if not isinstance(command, click.Group)}


def values(parameter: click.Parameter) -> tuple[str, ...]:
    special = {"overrides": SETTINGS + TEXTS, "device": DEVICES + TEXTS, "cluster": ADDRESSES}
    if parameter.name in special:
        return special[parameter.name]
    if isinstance(parameter.type, click.Path):
        return PATHS
    return NUMBERS if parameter.type.name.startswith(("integer", "float")) else TEXTS + PATHS


def odd_arguments(command: click.Command, usual: list[str]) -> Iterator[list[str]]:
    """The usual arguments, with each value of one option or argument replaced by odd ones."""
    positions = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    for parameter in command.params:
        if getattr(parameter, "is_flag", False):
            continue
        for value in values(parameter):
            if parameter.name in ("videos", "cache") and value == "/":
                continue  # `costl search` and `costl label` would look for videos on the whole disk
            if parameter in positions:
                at = positions.index(parameter)
                yield [*usual[:at], value, *usual[at + 1 :]]
            else:
                yield [*usual, f"{parameter.opts[-1]}={value}"]


def stop_work(*_: object, **__: object) -> None:
    raise UsageError("the work would start here.")


@pytest.fixture
def in_workspace(workspace, monkeypatch) -> None:
    monkeypatch.chdir(workspace)
    for place in WORK:
        module, name = place.split(":")
        monkeypatch.setattr(importlib.import_module(module), name, stop_work)
    monkeypatch.setattr("costl.pipeline.run.cluster_client._CONNECT_S", 0.01)  # no scheduler answers at an odd address


def test_every_command_has_usual_arguments():
    assert LEAVES.keys() == USUAL.keys()


@pytest.mark.parametrize("name", LEAVES)
def test_odd_values_give_only_our_own_errors(name, in_workspace):
    for arguments in odd_arguments(LEAVES[name], USUAL[name].split()):
        result = CliRunner().invoke(main, [*name.split(), *arguments])
        assert isinstance(result.exception, SystemExit | None), f"{arguments}: {result.exception!r}"
        assert result.exit_code in (0, 1, 2, 3), arguments
        assert "Traceback" not in result.output and "Error(" not in result.output, (arguments, result.output)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["predict", "videos/a.mp4", "a dog runs " * 24, "--run", "run"], 3, b"no such checkpoint"),
        (["predict", "videos/a.mp4", "犬が走る" * 22, "--run", "run"], 3, b"no such checkpoint"),
        (["predict", "videos/a.mp4", b"\xe9t\xe9", "--run", "run"], 2, b"not a text in UTF-8"),
        (["extract", "--videos", b"\xe9t\xe9"], 2, b"no such folder"),
        (["extract", "--videos", "x" * 300], 1, b"File name too long. Choose a shorter name."),
        (["train", "--cache", "feats.h5", "--set", b"train.epochs=\xff"], 2, b"not a YAML value"),
        (["train", "--cache", "feats.h5", "--out", "x" * 300], 2, b"File name too long"),
        (["evaluate", "--run", "run", "--split", b"\xe9t\xe9"], 2, b"no split"),
        (["prepare", b"\xe9t\xe9", "--annotations", "videos", "--out", "new"], 2, b"not a known benchmark"),
        (["cache", "inspect", "feats.h5", b"\xe9t\xe9"], 3, b"no video"),
        (["data", "sample", b"\xe9t\xe9", "--videos", "train=0"], 2, b"cannot be drawn"),
    ],
)
def test_bytes_of_a_shell_give_only_our_own_errors(arguments, code, reason, workspace):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Preloaded(["-m", "costl", *arguments], cwd=workspace, env=environment, **pipes) as process:
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == code and reason in stderr and b"Traceback" not in stderr, stderr


def test_bytes_of_a_shell_reach_a_new_process_as_well(workspace):
    command = [sys.executable, "-m", "costl", "predict", b"\xe9t\xe9.mp4", "dog"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, check=False)
    assert done.returncode == 2 and b"no such file" in done.stderr and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_text_can_be_printed(encoding):
    program = "import click; from costl.commands import main; say = lambda: click.echo('caf\\udce9 ▁犬'); "
    program += "main.command('say')(say); main(['say'])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.startswith(b"caf")

"""The installed command from outside, in an environment that holds nothing: exit codes, streams, interruption, and what it
leaves alone: the network, and every place that was not named.

The commands that load PyTorch to refuse something take a while, so that most of them wait for:

    python -m pytest tests/crash/test_from_outside.py -m long -n 0
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from processes import parts_of, wait_for

from costl.commands import main
from costl.training.run_folder import read_run

ROOT = Path(__file__).parents[2]
FAST_S = 20.0  # two seconds are promised; a machine with other work to do needs longer
PROMISED_S = 2.0
# Read by Python when it starts: whoever asks for another machine leaves a line, and gets nothing.
NO_NETWORK = """\
import os, socket

def refuse(*arguments, **options):
    with open(os.environ["ASKED"], "a") as file:
        file.write(repr(arguments) + "\\n")
    raise OSError("no network here")

class Socket(socket.socket):
    def connect(self, address):
        return super().connect(address) if self.family == socket.AF_UNIX else refuse(address)

    connect_ex = connect

    def sendto(self, *arguments):
        return super().sendto(*arguments) if self.family == socket.AF_UNIX else refuse(*arguments)

socket.socket = Socket
socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Outside:
    """The command as a user has it, with a home, a folder for what is temporary and a working folder that are its own."""

    def __init__(self, root: Path):
        self.home, self.temporary, self.here, self._aside = (root / n for n in ("home", "tmp", "here", "aside"))
        for folder in (self.home, self.temporary, self.here, self._aside):
            folder.mkdir()
        (self._aside / "sitecustomize.py").write_text(NO_NETWORK)
        self.asked = self._aside / "asked"
        self.command = [shutil.which("costl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")]
        if self.command == [None]:
            pytest.skip("the command is not installed here")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "ASKED": str(self.asked),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(self._aside), str(ROOT)]),
        }

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *map(str, arguments)],
            cwd=self.here,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: object, **environment: str) -> Done:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=280)
        return Done(process.returncode, out, err)

    def elsewhere(self) -> list[Path]:
        """Every file and folder where nothing was asked for, but for the empty one that torch makes with any optimizer."""
        found = [*self.home.rglob("*"), *self.temporary.rglob("*")]
        return [path for path in found if path.is_file() or not path.name.startswith("torchinductor_")]


@pytest.fixture
def outside(tmp_path) -> Outside:
    return Outside(tmp_path)


def all_commands() -> list[tuple[str, ...]]:
    """Every command of `costl --help`, with those inside a group."""
    found: list[tuple[str, ...]] = []
    for name, command in main.commands.items():
        found += [(name, inner) for inner in command.commands] if isinstance(command, click.Group) else [(name,)]
    return found


def refused(done: Done, code: int) -> None:
    """One sentence on standard error, and nothing on the other."""
    assert done.code == code and done.out == "", done
    assert "Traceback" not in done.err and "Error: " in done.err, done.err


@pytest.mark.promise(16)
def test_every_command_explains_itself_on_stdout_with_0_and_refuses_a_slip_on_stderr_with_2(outside):
    assert len(all_commands()) > 20
    for number, command in enumerate(all_commands()):
        # Help comes from the same place for all; one slip each.
        refused(outside.run(*command, "--no-such-option"), 2)
        if number % 8 == 0:
            done = outside.run(*command, "--help")
            assert done.code == 0 and done.err == "" and f"costl {' '.join(command)}" in done.out
    assert list(outside.here.iterdir()) == [] and not outside.asked.exists()


DAMAGED = {
    "status": ["cache", "status", "bad.h5"],
    "verify": ["cache", "verify", "bad.h5"],
    "inspect": ["cache", "inspect", "bad.h5"],
    "pack": ["cache", "pack", "bad.h5", "--out", "new.h5"],
    "unpack": ["cache", "unpack", "bad.h5", "--out", "new.h5"],
    "gc": ["cache", "gc", "bad.h5"],
    "merge": ["cache", "merge", "new.h5", "bad.h5"],
}
DAMAGED_TORCH = {
    "add-queries": ["cache", "add-queries", "bad.h5", "--annotations", "more.jsonl"],
    "train": ["train", "--cache", "bad.h5"],
    "evaluate": ["evaluate", "--run", "bad"],
    "report": ["report", "bad"],
    "export": ["data", "export", "bad", "new"],
    "predict": ["predict", "--run", "bad", "--video", "bad.h5", "--query", "a dog"],
    "repeat": ["study", "repeat", "--cache", "bad.h5"],
    "ablate": ["study", "ablate", "--cache", "bad.h5"],
    "diagnose": ["study", "diagnose", "--cache", "bad.h5"],
}


def damage(here: Path) -> None:
    """A cache and a run that are none."""
    (here / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (here / "more.jsonl").write_text('{"qid": 1, "query": "a dog", "vid": "a", "duration": 4.0}\n')
    (here / "bad").mkdir()
    (here / "bad" / "run.json").write_text("{")
    (here / "bad" / "config.yaml").write_text("{}")
    (here / "bad" / "best.safetensors").write_bytes(b"{")


def refuses_damage(outside: Outside, arguments: list[str]) -> None:
    damage(outside.here)
    before = sorted(outside.here.rglob("*"))
    refused(outside.run(*arguments), 3)
    assert [path for path in sorted(outside.here.rglob("*")) if path not in before] == []


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_cache_is_refused_with_3_by_every_command(outside, name):
    refuses_damage(outside, DAMAGED[name])


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "train")) for name in DAMAGED_TORCH]
)
def test_a_damaged_cache_or_run_is_refused_with_3_by_every_command_that_loads_torch(outside, name):
    refuses_damage(outside, DAMAGED_TORCH[name])


@pytest.mark.promise(17)
def test_every_slip_in_the_settings_is_told_at_once_in_less_than_a_second_and_before_torch_is_loaded(outside, tell):
    import resource

    slips = ["--set", "train.lerning_rate=1", "--set", "modl.width=8", "--set", "train.epochs=many"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = outside.run("train", "--cache", "feats.h5", *slips, PYTHONPROFILEIMPORTTIME="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = done.err.splitlines()
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert done.code == 2 and done.out == "" and "Traceback" not in said
    assert "learning_rate" in said and "model" in said and "epochs" in said and said.lower().count("did you mean") >= 2
    assert "click" in imported and not imported & {"torch", "h5py", "open_clip"}, "CUDA cannot have been touched"
    # Of the processor: what else the machine does costs it nothing.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tell(f"slips in the settings: told after {seconds:.2f} s of the processor")
    assert seconds < 1.0
    assert list(outside.here.iterdir()) == []


# From videos to numbers


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Six small videos with annotations and a CLIP."""
    from processes import write_videos

    return write_videos(tmp_path_factory.mktemp("small") / "dir", 6)


TRAIN = ["--set", "train.epochs=2", "--set", "model.width=32", "--set", "model.heads=2", "--json"]


@pytest.mark.promise(18)
@pytest.mark.promise(16)
def test_from_videos_to_numbers_nobody_is_asked_nothing_else_is_written_and_stdout_is_json(outside, small, tell):
    shutil.copytree(small, outside.here / "dir")
    given = {path: path.read_bytes() for path in (outside.here / "dir").rglob("*") if path.is_file()}
    found = {}
    for command in (
        ["extract", "--videos", "dir/", "--device", "cpu", "--workers", "2", "--json"],
        ["cache", "verify", "feats.h5", "--json"],
        ["cache", "status", "feats.h5", "--json"],
        ["cache", "inspect", "feats.h5", "--json"],
        ["train", "--cache", "feats.h5", "--out", "run", "--device", "cpu", *TRAIN],
        ["evaluate", "--run", "run", "--device", "cpu", "--json"],
    ):
        done = outside.run(*command)
        assert done.code == 0 and "Traceback" not in done.err, done
        lines = done.out.splitlines() if command[0] == "extract" else [done.out]
        found[command[1] if command[0] == "cache" else command[0]] = [json.loads(line) for line in lines]
        assert not outside.asked.exists(), outside.asked.read_text()
    assert found["extract"][-1]["event"] == "done" and len(found["status"][0]) == 6
    assert found["train"][0]["epochs"] == 2 and "brief" in found["evaluate"][0]
    assert outside.elsewhere() == [], "something was written where nobody asked for it"
    tell(f"{len(found)} commands from videos to numbers asked nobody and wrote nothing elsewhere")
    names = {path.name for path in outside.here.iterdir()}
    assert names == {"dir", "feats.h5", "feats.h5.parts", "feats.h5.runs.jsonl", "run"}
    assert {path: path.read_bytes() for path in (outside.here / "dir").rglob("*") if path.is_file()} == given


@pytest.mark.promise(18)
def test_the_guard_of_the_network_sees_who_asks(outside):
    code = "import urllib.request as r\ntry: r.urlopen('http://127.0.0.1:9/')\nexcept OSError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], env=outside.environment, capture_output=True, text=True)
    assert "no network here" in done.stdout and "127.0.0.1" in outside.asked.read_text()


# Ctrl-C


def interrupt(outside: Outside, process: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
    """As a terminal does: to all processes of the command at once; it ends soon, in a sentence."""
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    tell(f"interrupted: {process.args[1]} ended after {seconds:.2f} s ({PROMISED_S:g} s are promised)")
    assert process.returncode == 130 and "Interrupted." in err and "Traceback" not in err, (process.returncode, err)
    assert seconds < FAST_S
    lines = out.splitlines()
    assert all(json.loads(line)["event"] != "done" for line in lines)


@pytest.mark.promise(16)
def test_ctrl_c_ends_an_extraction_with_130_and_the_same_command_goes_on(outside, small, tell):
    shutil.copytree(small, outside.here / "dir")
    command = ["extract", "--videos", "dir/", "--fps", "1", "--device", "cpu", "--workers", "1", "--json"]
    process = outside.start(*command)
    wait_for(lambda: parts_of(outside.here / "feats.h5") or process.poll() is not None)
    interrupt(outside, process, tell)
    kept = {part.stem: part.stat().st_mtime_ns for part in parts_of(outside.here / "feats.h5")}
    assert kept and not list(outside.here.rglob("*.tmp"))
    done = outside.run(*command)
    assert done.code == 0, done.err
    assert set(json.loads(done.out.splitlines()[-1])["skipped"]) >= set(kept)
    now = {part.stem: part.stat().st_mtime_ns for part in parts_of(outside.here / "feats.h5")}
    assert kept.items() <= now.items(), "what was finished was made again"


@pytest.mark.promise(16)
def test_ctrl_c_ends_a_training_and_an_evaluation_with_130_and_both_go_on(outside, world, tell):
    epochs = ["--set", "train.epochs=4000", "--set", "train.patience=4000"]
    process = outside.start("train", "--cache", world.cache, "--out", "run", "--device", "cpu", *epochs)
    run = outside.here / "run"
    wait_for(lambda: (run / "last.safetensors").exists() or process.poll() is not None)
    interrupt(outside, process, tell)
    assert not read_run(run).finished and not list(run.glob(".*"))
    process = outside.start("evaluate", "--run", "run", "--device", "cpu")
    wait_for(lambda: (run / "eval-test").exists() or process.poll() is not None)
    interrupt(outside, process, tell)
    assert not list((run / "eval-test").glob(".*")), "nothing half-written stays"
    process = outside.start("train", "--resume", "run", "--device", "cpu")
    before = (run / "last.safetensors").stat().st_mtime_ns
    wait_for(lambda: (run / "last.safetensors").stat().st_mtime_ns > before or process.poll() is not None)
    interrupt(outside, process, tell)

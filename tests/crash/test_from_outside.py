"""The installed command in an empty environment: its exit codes and streams, Ctrl-C, no network, and no files but the
requested ones.

Commands that load PyTorch before they refuse something are slow; most of them are tested by:

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from preloaded import Preloaded
from processes import parts_of, wait_for

from costl.commands import main
from costl.training.run_folder import read_run

ROOT = Path(__file__).parents[2]
FAST_S = 20.0  # more than the promised two seconds, for a busy machine
PROMISED_S = 2.0
# Python reads this at its start: every attempt to reach another machine is logged and fails.
NO_NETWORK = """\
import os, socket

def refuse(*arguments, **options):
    with open(os.environ["NETWORK_LOG"], "a") as file:
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
# Runs commands one after the other; each writes to two files of its own, as if a shell had opened them.
ONE_PROCESS = """\
import json, os, sys
from costl.commands import main

folder = sys.argv[1]
for number, arguments in enumerate(json.load(sys.stdin)):
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(folder, f"{number}.{name}"), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        main(arguments, prog_name="costl")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.path.join(folder, f"{number}.code"), "w") as file:
        file.write(str(code or 0))
"""


class Result(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


class Outside:
    """The command as a user runs it, with its own home folder, temporary folder and working folder."""

    def __init__(self, root: Path):
        self.home = root / "home"
        self.temporary = root / "tmp"
        self.cwd = root / "cwd"
        self._site = root / "site"
        for folder in (self.home, self.temporary, self.cwd, self._site):
            folder.mkdir()
        self._root = root
        (self._site / "sitecustomize.py").write_text(NO_NETWORK)
        (self._site / "one_process.py").write_text(ONE_PROCESS)
        self.network_log = self._site / "network.log"
        self.command = [shutil.which("costl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")]
        if self.command == [None]:
            pytest.skip("the command is not installed here")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "NETWORK_LOG": str(self.network_log),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(self._site), str(ROOT)]),
        }

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.command, *map(str, arguments)],
            cwd=self.cwd,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_preloaded(self, *arguments: object) -> Preloaded:
        """Starts a command that needs PyTorch with PyTorch loaded: for tests of what it does afterwards."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return Preloaded(["-m", "costl", *arguments], cwd=self.cwd, env=self.environment, **pipes)

    def run(self, *arguments: object, **environment: str) -> Result:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=280)
        return Result(process.returncode, out, err)

    def run_in_one_process(self, *commands: Sequence[object]) -> list[Result]:
        """Runs them in one process, since a process that imports PyTorch takes longer than a small command."""
        folder = self._root / "printed"
        folder.mkdir()
        process = subprocess.run(
            [sys.executable, self._site / "one_process.py", folder],
            cwd=self.cwd,
            env=self.environment,
            input=json.dumps([list(map(str, command)) for command in commands]),
            capture_output=True,
            text=True,
            timeout=280,
        )
        printed = [[(folder / f"{number}.{name}") for name in ("code", "out", "err")] for number in range(len(commands))]
        assert process.returncode == 0 and process.stdout == process.stderr == "", (process, *folder.iterdir())
        return [Result(int(code.read_text()), out.read_text(), err.read_text()) for code, out, err in printed]

    def unrequested_files(self) -> list[Path]:
        """Every file and folder in the home and temporary folders, except the empty one that torch makes."""
        paths = [*self.home.rglob("*"), *self.temporary.rglob("*")]
        return [path for path in paths if path.is_file() or not path.name.startswith("torchinductor_")]


@pytest.fixture
def outside(tmp_path) -> Outside:
    return Outside(tmp_path)


def all_commands() -> list[tuple[str, ...]]:
    """Every command of `costl --help`, including those inside a group."""
    names: list[tuple[str, ...]] = []
    for name, command in main.commands.items():
        names += [(name, inner) for inner in command.commands] if isinstance(command, click.Group) else [(name,)]
    return names


def check_refusal(result: Result, code: int) -> None:
    """Checks the exit code, that standard error has an error message, and that standard output is empty."""
    assert result.code == code and result.out == "", result
    assert "Traceback" not in result.err and "Error: " in result.err, result.err


@pytest.mark.promise(16)
def test_every_command_has_help_and_refuses_an_unknown_option_with_2(outside):
    commands = all_commands()
    assert len(commands) > 20
    first = commands[0]
    check_refusal(outside.run(*first, "--no-such-option"), 2)
    assert f"costl {' '.join(first)}" in outside.run(*first, "--help").out
    results = outside.run_in_one_process(*((*command, "--no-such-option") for command in commands))
    for refused in results:
        check_refusal(refused, 2)
    # tests/costl/commands/test_help.py reads the help of every command.
    assert list(outside.cwd.iterdir()) == [] and not outside.network_log.exists()


CACHE_COMMANDS = {
    "status": ["cache", "status", "bad.h5"],
    "verify": ["cache", "verify", "bad.h5"],
    "inspect": ["cache", "inspect", "bad.h5"],
    "pack": ["cache", "pack", "bad.h5", "--out", "new.h5"],
    "unpack": ["cache", "unpack", "bad.h5", "--out", "new.h5"],
    "gc": ["cache", "gc", "bad.h5"],
    "merge": ["cache", "merge", "new.h5", "bad.h5"],
}
TORCH_COMMANDS = {
    "add-queries": ["cache", "add-queries", "bad.h5", "--annotations", "more.jsonl"],
    "train": ["train", "--cache", "bad.h5"],
    "evaluate": ["evaluate", "--run", "bad"],
    "report": ["report", "bad"],
    "export": ["data", "export", "bad", "new"],
    "predict": ["predict", "--run", "bad", "bad.h5", "a dog"],
    "repeat": ["study", "repeat", "--cache", "bad.h5"],
    "ablate": ["study", "ablate", "--cache", "bad.h5"],
    "diagnose": ["study", "diagnose", "--cache", "bad.h5"],
}


def write_damaged_files(folder: Path) -> None:
    """Writes a damaged cache and a damaged run."""
    (folder / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (folder / "more.jsonl").write_text('{"qid": 1, "query": "a dog", "vid": "a", "duration": 4.0}\n')
    (folder / "bad").mkdir()
    (folder / "bad" / "run.json").write_text("{")
    (folder / "bad" / "config.yaml").write_text("{}")
    (folder / "bad" / "best.safetensors").write_bytes(b"{")


def check_damage_is_refused(outside: Outside, arguments: list[str]) -> None:
    write_damaged_files(outside.cwd)
    before = sorted(outside.cwd.rglob("*"))
    check_refusal(outside.run(*arguments), 3)
    assert [path for path in sorted(outside.cwd.rglob("*")) if path not in before] == []


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", CACHE_COMMANDS)
def test_a_damaged_cache_is_refused_with_3_by_every_command(outside, name):
    check_damage_is_refused(outside, CACHE_COMMANDS[name])


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name != "train")) for name in TORCH_COMMANDS]
)
def test_damage_is_refused_with_3_by_every_command_that_loads_torch(outside, name):
    check_damage_is_refused(outside, TORCH_COMMANDS[name])


@pytest.mark.promise(17)
def test_all_mistakes_in_settings_are_reported_before_torch_is_loaded(outside, report_figure):
    import resource

    mistakes = ["--set", "train.lerning_rate=1", "--set", "modl.width=8", "--set", "train.epochs=many"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = outside.run("train", "--cache", "feats.h5", *mistakes, PYTHONPROFILEIMPORTTIME="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = result.err.splitlines()
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    message = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert result.code == 2 and result.out == "" and "Traceback" not in message
    assert "learning_rate" in message and "model" in message and "epochs" in message
    assert message.lower().count("did you mean") >= 2
    assert "click" in imported and not imported & {"torch", "h5py", "open_clip"}, "torch must not be loaded"
    # Processor time, which other work on the machine does not change.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report_figure(f"mistakes in the settings: reported after {seconds:.2f} s of the processor")
    assert seconds < 1.0
    assert list(outside.cwd.iterdir()) == []


# From videos to metrics


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Six small videos with annotations and the weights of a small CLIP."""
    from processes import write_videos

    return write_videos(tmp_path_factory.mktemp("small") / "dir", 6)


TRAIN = ["--set", "train.epochs=2", "--set", "model.width=32", "--set", "model.heads=2", "--json"]


@pytest.mark.promise(18)
@pytest.mark.promise(16)
def test_no_network_no_other_file_and_json_on_stdout_for_six_commands(outside, small, report_figure):
    shutil.copytree(small, outside.cwd / "dir")
    videos_before = {path: path.read_bytes() for path in (outside.cwd / "dir").rglob("*") if path.is_file()}
    printed = {}
    commands = (
        ["extract", "--videos", "dir/", "--device", "cpu", "--workers", "2", "--json"],
        ["cache", "verify", "feats.h5", "--json"],
        ["cache", "status", "feats.h5", "--json"],
        ["cache", "inspect", "feats.h5", "--json"],
        ["train", "--cache", "feats.h5", "--out", "run", "--device", "cpu", *TRAIN],
        ["evaluate", "--run", "run", "--device", "cpu", "--json"],
    )
    for command, result in zip(commands, outside.run_in_one_process(*commands), strict=True):
        assert result.code == 0 and "Traceback" not in result.err, result
        lines = result.out.splitlines() if command[0] == "extract" else [result.out]
        printed[command[1] if command[0] == "cache" else command[0]] = [json.loads(line) for line in lines]
    assert not outside.network_log.exists(), outside.network_log.read_text()
    assert printed["extract"][-1]["event"] == "done" and len(printed["status"][0]) == 6
    assert printed["train"][0]["epochs"] == 2 and "brief" in printed["evaluate"][0]
    assert outside.unrequested_files() == [], "files were written outside of the working folder"
    report_figure(f"{len(printed)} commands from videos to metrics used no network and wrote nothing else")
    names = {path.name for path in outside.cwd.iterdir()}
    assert names == {"dir", "feats.h5", "feats.h5.parts", "feats.h5.runs.jsonl", "run"}
    assert {path: path.read_bytes() for path in (outside.cwd / "dir").rglob("*") if path.is_file()} == videos_before


@pytest.mark.promise(18)
def test_the_network_guard_records_a_connection(outside):
    code = "import urllib.request as r\ntry: r.urlopen('http://127.0.0.1:9/')\nexcept OSError as e: print(e)"
    result = subprocess.run([sys.executable, "-c", code], env=outside.environment, capture_output=True, text=True)
    assert "no network here" in result.stdout and "127.0.0.1" in outside.network_log.read_text()


# Ctrl-C


def interrupt(outside: Outside, process: subprocess.Popen[str], report_figure: Callable[[str], None]) -> None:
    """Sends SIGINT to all processes of the command, as a terminal does; it must end soon, with a message."""
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    seconds = time.monotonic() - began
    report_figure(f"interrupted: {process.args[2]} ended after {seconds:.2f} s (promised: {PROMISED_S:g} s)")
    assert process.returncode == 130 and "Interrupted." in err and "Traceback" not in err, (process.returncode, err)
    assert seconds < FAST_S
    lines = out.splitlines()
    assert all(json.loads(line)["event"] != "done" for line in lines)


@pytest.mark.promise(16)
def test_ctrl_c_ends_an_extraction_with_130_and_the_same_command_goes_on(outside, small, report_figure):
    shutil.copytree(small, outside.cwd / "dir")
    command = ["extract", "--videos", "dir/", "--fps", "1", "--device", "cpu", "--workers", "1", "--json"]
    process = outside.start_preloaded(*command)
    wait_for(lambda: parts_of(outside.cwd / "feats.h5") or process.poll() is not None)
    interrupt(outside, process, report_figure)
    finished = {part.stem: part.stat().st_mtime_ns for part in parts_of(outside.cwd / "feats.h5")}
    assert finished and not list(outside.cwd.rglob("*.tmp"))
    process = outside.start_preloaded(*command)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert set(json.loads(out.splitlines()[-1])["skipped"]) >= set(finished)
    now = {part.stem: part.stat().st_mtime_ns for part in parts_of(outside.cwd / "feats.h5")}
    assert finished.items() <= now.items(), "a finished video was extracted again"


@pytest.mark.promise(16)
def test_ctrl_c_ends_a_training_and_an_evaluation_with_130_and_both_go_on(outside, world, report_figure):
    overrides = ["--set", "train.epochs=4000", "--set", "train.patience=4000"]
    process = outside.start_preloaded("train", "--cache", world.cache, "--out", "run", "--device", "cpu", *overrides)
    run = outside.cwd / "run"
    wait_for(lambda: (run / "last.safetensors").exists() or process.poll() is not None)
    interrupt(outside, process, report_figure)
    assert not read_run(run).finished and not list(run.glob(".*"))
    process = outside.start_preloaded("evaluate", "--run", "run", "--device", "cpu")
    wait_for(lambda: (run / "eval-test").exists() or process.poll() is not None)
    interrupt(outside, process, report_figure)
    assert not list((run / "eval-test").glob(".*")), "a temporary file is left"
    process = outside.start_preloaded("train", "--resume", "run", "--device", "cpu")
    before = (run / "last.safetensors").stat().st_mtime_ns
    wait_for(lambda: (run / "last.safetensors").stat().st_mtime_ns > before or process.poll() is not None)
    interrupt(outside, process, report_figure)

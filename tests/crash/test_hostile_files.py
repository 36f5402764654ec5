"""Files made to do harm, before every command that reads them: one sentence, nothing run, nothing else opened or written.

`hostile.ZOO` is the list. All of it is done by one process that is watched (`besieged`): by Python's audit hooks, by the
kernel where HDF5's own library opens files past Python, and under a limit of memory.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile_files import BUT, CANARY, COMMANDS, MARK, VIDEO, ZOO, Hostile, link_tree, write_canary, write_home

from costl.commands import main

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs inotify and /proc")
MOST_MB = 200  # more than any of these files is large by far, and less than any bomb
LONGEST = 1500  # characters on standard error


@dataclass(frozen=True)
class Told:
    """What came of one command before one file."""

    name: str
    command: str
    code: int
    out: str
    said: str
    length: int
    raised: str
    strange: list[str]
    written: list[str]
    grown_mb: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A home in which everything is as it should be."""
    home = tmp_path_factory.mktemp("hostile") / "whole"
    write_home(home)
    write_canary(home)
    return home


FEW, ALL = 2, 99  # commands before each file
LONG = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=[FEW, pytest.param(ALL, marks=LONG)])
def told(whole, request) -> list[Told]:
    """What came of every file before two of the commands that read it, in turn; in the long variant before all."""
    plan = []
    for number, animal in enumerate(ZOO):
        home = whole.parent / f"{request.param}-{number:03}"  # beside the canary, to which links lead
        link_tree(whole, home)
        animal.make(home)
        plan.append([animal.name, str(home), [COMMANDS[command] for command in some(animal, number, request.param)]])
    assert {command for *_, commands in plan for command in commands} == set(COMMANDS.values())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            str(Path(__file__).with_name("sandboxed_process.py")),
            str(whole.parent / CANARY),
        ],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        env=environment,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [Told(**json.loads(line)) for line in done.stdout.splitlines()]
    assert len(answers) == sum(len(commands) for *_, commands in plan)
    return answers


def some(animal: Hostile, number: int, most: int) -> list[str]:
    """At most so many of its commands, beginning at another one for each file."""
    turn = number % len(animal.commands)
    return [*animal.commands[turn:], *animal.commands[:turn]][:most]


def wrong(told: list[Told], holds) -> list[str]:
    return [
        f"{one.name} | {one.command} | {one.code} {one.raised} {one.said[-300:]!r}" for one in told if not holds(one)
    ]


@pytest.mark.promise(9)
@linux
def test_every_hostile_file_is_refused_in_a_sentence_with_its_exit_code(told, tell):
    of = {animal.name: animal for animal in ZOO}
    assert len(of) == len(ZOO) == len({one.name for one in told})

    def holds(one: Told) -> bool:
        animal = of[one.name]
        where = one.out + one.said if "verify" in one.command else one.said
        # What pack refuses it names, and says by which command to see why.
        said = animal.says in where or (one.command.startswith("cache pack") and f"damaged: {VIDEO}." in where)
        return one.code == animal.code and said and not one.raised and "Traceback" not in one.said

    assert wrong(told, holds) == []
    assert wrong(told, lambda one: one.length < LONGEST) == []
    most = max(one.grown_mb for one in told)
    tell(f"hostile files: {len(ZOO)} before {len(told)} commands, all refused, by at most {most:.0f} MB more")


@pytest.mark.promise(9)
@linux
def test_nothing_is_run_and_no_other_file_is_opened(told, whole):
    assert [f"{one.name} | {one.command} | {one.strange}" for one in told if one.strange] == []
    assert not list(whole.parent.rglob(MARK)), "something that a file said was done"


@linux
def test_nothing_is_written(told):
    """But the lock by which a folder is claimed."""
    left = [[path for path in one.written if not path.endswith("/.lock")] for one in told]
    assert [f"{one.name} | {one.command} | {paths}" for one, paths in zip(told, left, strict=True) if paths] == []


@pytest.mark.promise(9)
@linux
def test_memory_is_bounded(told):
    assert [f"{one.name} | {one.command} | {one.grown_mb}" for one in told if one.grown_mb > MOST_MB] == []


@linux
@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_takes_what_is_whole(whole, command, tmp_path, monkeypatch):
    """Otherwise all of them might be refused for another reason."""
    link_tree(whole, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    done = CliRunner().invoke(main, COMMANDS[command].split())
    if command in BUT:
        assert done.exit_code in (2, 3) and BUT[command] in done.stderr
    else:
        assert done.exit_code == 0, done.stderr
    assert any(command in animal.commands for animal in ZOO)


def test_no_code_of_ours_unpickles_or_evaluates_what_it_reads():
    """`torch.load` only with weights_only=True, `yaml.load` only with a loader of plain values, the others nowhere."""
    forbidden = Counter()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("pipeline/**/*.py"), *ROOT.glob("costl/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            forbidden.update(f"{path.relative_to(ROOT)}:{node.lineno} {what}" for what in _dangers(node))
    assert not forbidden


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "runpy"}
UNSAFE_LOADERS = {"Loader", "FullLoader", "UnsafeLoader", "CLoader"}


def _dangers(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if name.name.partition(".")[0] in UNSAFE_MODULES]
    if isinstance(node, ast.ImportFrom):
        return [f"from {node.module}"] if (node.module or "").partition(".")[0] in UNSAFE_MODULES else []
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml":
        return [f"yaml.{node.attr}"] if node.attr in UNSAFE_LOADERS or node.attr in ("unsafe_load", "full_load") else []
    return _called(node) if isinstance(node, ast.Call) else []


def _called(node: ast.Call) -> list[str]:
    said = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile", "__import__"):
        return [node.func.id]
    if not (isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)):
        return []
    called = f"{node.func.value.id}.{node.func.attr}"
    safe = {
        "torch.load": ast.unparse(said.get("weights_only", ast.Constant(None))) == "True",
        "yaml.load": "Loader" in said,
        "np.load": ast.unparse(said.get("allow_pickle", ast.Constant(None))) == "False",
        "joblib.load": False,
        "os.system": False,
    }
    return [] if safe.get(called, True) else [called]

"""Every command refuses every hostile file in one sentence, runs nothing in it, and opens and writes no other file.

`hostile_files.HOSTILE_FILES` is the list. One sandboxed process runs all the commands. Python's audit hooks watch it,
inotify watches what HDF5's C library opens, and its memory is limited.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile_files import (
    COMMANDS,
    HOSTILE_FILES,
    MARKER,
    REFUSED_WHEN_INTACT,
    SIDE_EFFECT,
    VIDEO,
    HostileFile,
    link_tree,
    write_marker,
    write_workspace,
)
from preloaded import Preloaded

from costl.commands import main

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs inotify and /proc")
MOST_MB = 200  # well above any of these files, and well below what a bomb would take
LONGEST_STDERR = 1500  # characters
FEW, ALL = 2, 99  # commands for each file
LONG = [pytest.mark.long, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class CommandResult:
    """What one command did with one hostile file, as sandboxed_process.py reports it."""

    name: str
    command: str
    exit_code: int
    stdout: str
    stderr: str
    stderr_length: int
    exception: str
    forbidden: list[str]
    written: list[str]
    grown_mb: float


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """A workspace in which every file is intact."""
    workspace = tmp_path_factory.mktemp("hostile") / "intact"
    write_workspace(workspace)
    write_marker(workspace)
    return workspace


@pytest.fixture(scope="module", params=[FEW, pytest.param(ALL, marks=LONG)])
def results(intact, request) -> list[CommandResult]:
    """Every file with two of the commands that read it, in turn; in the long variant with all of them."""
    plan = []
    for number, hostile in enumerate(HOSTILE_FILES):
        workspace = intact.parent / f"{request.param}-{number:03}"  # next to the marker file, to which links lead
        link_tree(intact, workspace)
        hostile.write(workspace)
        commands = [COMMANDS[command] for command in choose_commands(hostile, number, request.param)]
        plan.append([hostile.name, str(workspace), commands])
    assert {command for *_, commands in plan for command in commands} == set(COMMANDS.values())
    results = run_sandboxed(plan, intact.parent / MARKER)
    assert len(results) == sum(len(commands) for *_, commands in plan)
    return results


def choose_commands(hostile: HostileFile, number: int, most: int) -> list[str]:
    """At most `most` of the commands that read the file, starting with a different one for each file."""
    start = number % len(hostile.commands)
    return [*hostile.commands[start:], *hostile.commands[:start]][:most]


def run_sandboxed(plan: list, marker: Path) -> list[CommandResult]:
    script = Path(__file__).with_name("sandboxed_process.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Preloaded([script, marker], env=environment, **pipes) as process:
        stdout, stderr = process.communicate(json.dumps(plan), timeout=3000)
    assert process.returncode == 0, stderr[-3000:]
    return [CommandResult(**json.loads(line)) for line in stdout.splitlines()]


def failures(results: list[CommandResult], is_right: Callable[[CommandResult], bool]) -> list[str]:
    return [
        f"{one.name} | {one.command} | {one.exit_code} {one.exception} {one.stderr[-300:]!r}"
        for one in results
        if not is_right(one)
    ]


@pytest.mark.promise(9)
@linux
def test_every_hostile_file_is_refused_in_one_sentence_with_its_exit_code(results, report_figure):
    by_name = {hostile.name: hostile for hostile in HOSTILE_FILES}
    assert len(by_name) == len(HOSTILE_FILES) == len({one.name for one in results})

    def is_refused(one: CommandResult) -> bool:
        hostile = by_name[one.name]
        output = one.stdout + one.stderr if "verify" in one.command else one.stderr
        # `cache pack` names a damaged video and the command that explains the damage.
        packing = one.command.startswith("cache pack") and f"damaged: {VIDEO}." in output
        explained = hostile.message in output or packing
        return one.exit_code == hostile.exit_code and explained and not one.exception and "Traceback" not in one.stderr

    assert failures(results, is_refused) == []
    assert failures(results, lambda one: one.stderr_length < LONGEST_STDERR) == []
    most_mb = max(one.grown_mb for one in results)
    report_figure(
        f"hostile files: {len(HOSTILE_FILES)} files, {len(results)} commands, all refused with at most {most_mb:.0f} MB"
    )


@pytest.mark.promise(9)
@linux
def test_hostile_files_run_nothing_and_open_no_other_file(results, intact):
    assert [f"{one.name} | {one.command} | {one.forbidden}" for one in results if one.forbidden] == []
    assert not list(intact.parent.rglob(SIDE_EFFECT)), "code inside a hostile file was run"


@linux
def test_hostile_files_write_nothing(results):
    """Except for the file that locks a folder."""
    written = [[path for path in one.written if not path.endswith("/.lock")] for one in results]
    assert [f"{one.name} | {one.command} | {paths}" for one, paths in zip(results, written, strict=True) if paths] == []


@pytest.mark.promise(9)
@linux
def test_hostile_files_take_bounded_memory(results):
    assert [f"{one.name} | {one.command} | {one.grown_mb}" for one in results if one.grown_mb > MOST_MB] == []


@linux
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_accepts_the_intact_files(intact, command, tmp_path, monkeypatch):
    """Otherwise the hostile files might be refused for another reason."""
    link_tree(intact, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    result = CliRunner().invoke(main, COMMANDS[command].split())
    if command in REFUSED_WHEN_INTACT:
        assert result.exit_code in (2, 3) and REFUSED_WHEN_INTACT[command] in result.stderr
    else:
        assert result.exit_code == 0, result.stderr
    assert any(command in hostile.commands for hostile in HOSTILE_FILES)


def test_no_module_unpickles_or_evaluates_what_it_reads():
    """`torch.load` only with weights_only=True, `yaml.load` only with a loader of plain values, the others never."""
    forbidden = Counter()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("pipeline/**/*.py"), *ROOT.glob("costl/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            forbidden.update(f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in _unsafe_names(node))
    assert not forbidden


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "runpy"}
UNSAFE_LOADERS = {"Loader", "FullLoader", "UnsafeLoader", "CLoader"}


def _unsafe_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if name.name.partition(".")[0] in UNSAFE_MODULES]
    if isinstance(node, ast.ImportFrom):
        return [f"from {node.module}"] if (node.module or "").partition(".")[0] in UNSAFE_MODULES else []
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml":
        return [f"yaml.{node.attr}"] if node.attr in UNSAFE_LOADERS or node.attr in ("unsafe_load", "full_load") else []
    return _unsafe_call(node) if isinstance(node, ast.Call) else []


def _unsafe_call(node: ast.Call) -> list[str]:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "compile", "__import__"):
        return [node.func.id]
    if not (isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)):
        return []
    called = f"{node.func.value.id}.{node.func.attr}"
    safe = {
        "torch.load": ast.unparse(keywords.get("weights_only", ast.Constant(None))) == "True",
        "yaml.load": "Loader" in keywords,
        "np.load": ast.unparse(keywords.get("allow_pickle", ast.Constant(None))) == "False",
        "joblib.load": False,
        "os.system": False,
    }
    return [] if safe.get(called, True) else [called]

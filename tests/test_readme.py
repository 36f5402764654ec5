"""The README is right: its commands parse, the main ones run as typed, and its links lead to files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click import Command, Context, Group
from click.testing import CliRunner
from preloaded import Preloaded

import costl
from costl.commands import main
from costl.config import load_config
from costl.data.annotations import parse_jsonl
from costl.train import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in README.splitlines() if line.startswith("costl ")]
FIRST, SECOND = "pip install . && costl quickstart", "pip install '.[test]' && pytest"


def test_the_two_commands_that_set_everything_up_come_first():
    fences = re.findall(r"^```\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert fences[:2] == [FIRST, SECOND]


@pytest.mark.parametrize("command", [*COMMANDS, "costl quickstart", "costl data sample dir/"])
def test_every_command_shown_has_options_that_exist_and_values_that_parse(command):
    _, *arguments = shlex.split(command)
    shown: Command = main
    while isinstance(shown, Group):
        name, *arguments = arguments
        shown = shown.commands[name]
    context = shown.make_context(shown.name, arguments, parent=Context(main))
    load_config(overrides=context.params.get("overrides") or ())


def test_the_three_commands_run_and_a_second_extraction_decodes_nothing(world, tmp_path, monkeypatch):
    three = [c for c in COMMANDS if c in main.help][:3]
    assert [c.split()[1] for c in three] == ["extract", "train", "evaluate"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").symlink_to(world.videos, target_is_directory=True)
    for command in [*three, three[0]]:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert "0 videos extracted" in result.stderr


def test_the_python_example_runs_as_a_script_and_answers_two_queries(world, tmp_path):
    (lines,) = re.findall(r"^```python\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    train(world.cache, overrides=["train.epochs=1"], out=tmp_path / "runs" / "mine", device="cpu")
    shutil.copy(world.videos / "test_0000.mp4", tmp_path / "holiday.mp4")
    (tmp_path / "script.py").write_text(lines.replace("runs/NAME", "runs/mine") + "\nprint(len(answers))\n")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(costl.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Preloaded([tmp_path / "script.py"], cwd=tmp_path, env=environment, **pipes) as process:
        stdout, stderr = process.communicate(timeout=200)
    assert (process.returncode, stderr) == (0, "")
    assert stdout.startswith("holiday.mp4 · 0:24 · a dog catches a ball\n   1  0:") and stdout.endswith("\n2\n")


def test_the_picture_and_the_links_within_the_project_exist():
    targets = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert targets and all((ROOT / target).is_file() for target in targets)


def test_the_annotation_shown_is_read():
    (row,) = re.findall(r"^```json\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert parse_jsonl(row, "README.md")[0].windows == ((12.0, 20.0), (86.0, 94.0))


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z]+@", README)

"""The help of every command and group, and the error for a command without its group."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.commands.early import REMOVED

ROOT = Path(__file__).parents[3]
VERBS = "Add Ask Check Compare Convert Describe Draw Export Extract Find Import Inspect Label List Make Measure Merge Pack"
VERBS += " Reproduce Run Score Store Train Try Unpack Verify Write"
THREE = ("costl extract --videos dir/", "costl train --cache feats.h5", "costl evaluate --split test")


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group with its names, the program itself first."""
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY_COMMAND = [pytest.param(path, command, id=" ".join(("costl", *path))) for path, command in commands()]


def help_of(path: tuple[str, ...], columns: int = 100) -> list[str]:
    # click leaves two columns free.
    result = CliRunner().invoke(main, [*path, "--help"], prog_name="costl", terminal_width=columns - 2)
    assert result.exit_code == 0 and result.stderr == ""
    return result.stdout.splitlines()


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_the_help_of_a_command_is_in_the_imperative(path, command):
    assert command.help.split()[0].strip(",") in VERBS.split()
    assert re.match(r"[^\n]+\.\n|[^\n]+\.$", command.help), "the summary is one sentence on the first line"


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_help_fits_into_45_lines_of_100_columns(path, command):
    lines = help_of(path)
    assert max(map(len, lines)) <= 100
    assert not [line for line in lines if line.endswith("-")], "a name is broken at its hyphen"
    assert len(lines) <= 45


@pytest.mark.parametrize(("path", "command"), [one for one in EVERY_COMMAND if isinstance(one.values[1], click.Group)])
@pytest.mark.parametrize("columns", [80, 100])
def test_the_summary_of_every_command_is_whole_and_on_one_line(path, command, columns):
    lines = [" ".join(line.split()) for line in help_of(path, columns)]
    for name, inner in command.commands.items():
        summary = inner.help.split("\n")[0]
        assert f"{name} {summary}" in lines


@pytest.mark.parametrize(("path", "command"), EVERY_COMMAND)
def test_short_options_have_one_meaning(path, command):
    short = {option: parameter.name for parameter in command.params for option in parameter.opts if len(option) == 2}
    assert short.items() <= {"-o": "out", "-q": "quiet", "-V": "version", "-h": "help"}.items()
    assert not [parameter for parameter in command.params if "--out" in parameter.opts and "-o" not in parameter.opts]


def test_the_top_level_has_the_three_commands_first():
    lines = help_of(())
    for command in THREE:
        assert f"      {command}" in lines
    start = lines.index("The three commands:")
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["extract", "train", "evaluate"]
    assert lines[start + 4] == ""
    assert set(main.commands) == {name for names in main.sections().values() for name in names}
    assert len(main.commands) <= 15


@pytest.mark.parametrize(
    ("name", "whole"), [("sample", "data sample"), ("verify", "cache verify"), ("ablate", "study ablate")]
)
@pytest.mark.parametrize("others", [[], ["--help"], ["feats.h5", "--no-such-option", "-x"]])
def test_a_command_without_its_group_is_refused_with_its_whole_name(name, whole, others):
    result = CliRunner().invoke(main, [name, *others])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: costl {name}: no such command. Run costl {whole}.\n"


@pytest.mark.parametrize("others", [[], ["feats.h5"], ["--help"]])
@pytest.mark.parametrize(("command", "option"), REMOVED)
def test_a_removed_option_is_refused_with_the_next_step(command, option, others):
    for arguments in ([command, option, *others], [command, *others, f"{option}=1"]):
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"Error: costl {command} {option} is gone. {REMOVED[command, option]}\n"


@pytest.mark.parametrize("program", [["-m", "costl"], ["cli.py"]])
@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_module_and_the_script_run(program, option):
    done = subprocess.run([sys.executable, *program, option], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(r"costl, version \S+\n", done.stdout)


def test_every_command_that_draws_progress_can_be_quiet():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "costl" / "commands").glob("*.py"))
    assert source.count("ProgressBars(") == source.count("ProgressBars(silent=quiet)")
    quiet = [path for path, command in commands() if any(parameter.name == "quiet" for parameter in command.params)]
    assert len(quiet) == 26

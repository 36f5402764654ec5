"""Old Python names: they work for one version, with a warning that has the new name, and the project uses none."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD_NAMES = [
    ("costl.checkpoint", "load_checkpoint", "costl.training.checkpoint"),
    ("costl.explain", "looks_at", "costl.predict.attention_maps"),
    ("costl.runs", "open_cache", "costl.training.run_folder"),
    ("costl.runs", "read_run", "costl.training.run_folder"),
]


@pytest.mark.parametrize(("old", "name", "new"), OLD_NAMES)
def test_an_old_name_is_the_object_of_today_and_warns(old, name, new):
    with pytest.warns(DeprecationWarning, match=rf"^{old}\.{name} is now {new}\.{name}\.$") as warned:
        value = getattr(import_module(old), name)
    assert value is getattr(import_module(new), name)
    assert warned[0].filename == __file__


@pytest.mark.parametrize(("old", "name", "new"), OLD_NAMES)
def test_the_import_that_the_docs_showed_works_and_names_its_line(old, name, new):
    code = f"from {old} import {name}\nprint({name}.__module__)"
    command = [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{new}\n"
    assert f"<string>:1: DeprecationWarning: {old}.{name} is now {new}.{name}." in done.stderr


@pytest.mark.parametrize("old", sorted({old for old, _, _ in OLD_NAMES}))
def test_an_old_module_has_no_other_names(old):
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'load'"):
        _ = import_module(old).load


def test_the_project_imports_no_old_module():
    old = {path.stem for path in (ROOT / "costl" / "deprecated").glob("*.py")} - {"__init__"}
    assert old == {name.removeprefix("costl.") for name, _, _ in OLD_NAMES}
    files = [path for room in ("costl", "pipeline", "tools", "tests") for path in (ROOT / room).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {f"costl.{name}" for name in old} & set(names), path

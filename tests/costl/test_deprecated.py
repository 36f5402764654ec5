"""Old Python names: they work for one version, with a warning that has the new name, and the project uses none."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from costl.predict.attention_maps import AttentionMaps

ROOT = Path(__file__).parents[2]
MOVED_MODULES = [
    ("costl.checkpoint", "load_checkpoint", "costl.training.checkpoint", "load_checkpoint"),
    ("costl.explain", "looks_at", "costl.predict.attention_maps", "clip_attention_maps"),
    ("costl.runs", "open_cache", "costl.training.run_folder", "open_cache"),
    ("costl.runs", "read_run", "costl.training.run_folder", "read_run"),
]
MOVED_OBJECTS = [
    ("costl.evaluate", "read_queries", "costl.data.queries", "read_queries"),
]
OLD_NAMES = MOVED_MODULES + MOVED_OBJECTS
OLD_FIELDS = [("chosen", "short_list"), ("nothing", "null_attention"), ("heard", "word_weights")]


@pytest.mark.parametrize(("old", "name", "new", "new_name"), OLD_NAMES)
def test_an_old_name_is_the_object_of_today_and_warns(old, name, new, new_name):
    with pytest.warns(DeprecationWarning, match=rf"^{old}\.{name} is now {new}\.{new_name}\.$") as warned:
        value = getattr(import_module(old), name)
    assert value is getattr(import_module(new), new_name)
    assert warned[0].filename == __file__


def test_the_imports_that_the_docs_showed_work_and_name_their_lines():
    code = "\n".join(f"from {old} import {name} as moved; print(moved.__module__)" for old, name, *_ in OLD_NAMES)
    command = [sys.executable, "-W", "always::DeprecationWarning:__main__", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [new for _, _, new, _ in OLD_NAMES]
    for line, (old, name, new, new_name) in enumerate(OLD_NAMES, start=1):
        assert f"<string>:{line}: DeprecationWarning: {old}.{name} is now {new}.{new_name}." in done.stderr


@pytest.mark.parametrize("old", sorted({old for old, *_ in OLD_NAMES}))
def test_an_old_module_has_no_other_names(old):
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'load'"):
        _ = import_module(old).load


@pytest.mark.parametrize(("old", "new"), OLD_FIELDS)
def test_an_old_field_has_the_value_of_the_new_one_and_warns(old, new):
    arrays = {"share": (1, 4), "attention": (1, 2, 4), "null_attention": (1, 2), "word_weights": (1, 2)}
    values = {name: np.ones(shape, np.float32) for name, shape in arrays.items()}
    maps = AttentionMaps(words=("a", "dog"), short_list=np.ones((1, 4), bool), **values)
    with pytest.warns(DeprecationWarning, match=rf"^AttentionMaps\.{old} is now {new}\.$") as warned:
        value = getattr(maps, old)
    assert value is getattr(maps, new)
    assert warned[0].filename == __file__


def test_the_project_imports_no_old_name():
    modules = {path.stem for path in (ROOT / "costl" / "deprecated").glob("*.py")} - {"__init__"}
    assert modules == {old.removeprefix("costl.") for old, *_ in MOVED_MODULES}
    old_names = {f"costl.{name}" for name in modules} | {f"{old}.{name}" for old, name, *_ in MOVED_OBJECTS}
    files = [path for room in ("costl", "pipeline", "tools", "tests") for path in (ROOT / room).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not old_names & set(names), path

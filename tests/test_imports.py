"""The rules between rooms: which room may import which, read from the source."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
P = "costl.pipeline"
# What all of stage two may use of stage one, and what only those parts may use that work on videos themselves.
DOORS = [f"{P}.{name}" for name in ("cache", "device", "encode.types", "errors", "fingerprint", "formats", "grid", "progress")]
DOORS += [f"{P}.annotations"]
VIDEO_DOORS = {
    "costl.commands": [P],
    "costl.ask": [f"{P}.extract", f"{P}.feature_store", f"{P}.library", f"{P}.options", f"{P}.preview"],
    "costl.data.loader": [f"{P}.processes"],
    "costl.benchmarks": [f"{P}.decode.backends", f"{P}.videos"],
    "costl.converters": [f"{P}.data_folder", f"{P}.decode", f"{P}.videos"],
    "costl.demo": [f"{P}.library", f"{P}.preview", f"{P}.videos"],
    "costl.experiments.quickstart": [f"{P}.extract", f"{P}.world"],
    "costl.label": [f"{P}.decode", f"{P}.feature_store", f"{P}.library", f"{P}.preview", f"{P}.videos"],
    "costl.report": [f"{P}.preview"],
    "costl.reproduce.measure": [f"{P}.data_folder"],
    "costl.reproduce.sources": [f"{P}.data_folder", f"{P}.extract", f"{P}.published", f"{P}.videos"],
    "costl.search": [f"{P}.decode", f"{P}.encode", f"{P}.feature_store", f"{P}.library", f"{P}.preview", f"{P}.videos"],
}
LIBRARY_ROOMS = {
    "click tqdm": ["costl.commands"],
    "h5py": [f"{P}.cache"],
    "open_clip": [f"{P}.encode", f"{P}.bench"],
    "decord av": [f"{P}.decode", f"{P}.preview", f"{P}.world", f"{P}.bench"],
    "matplotlib": ["costl.plots"],
    "pyarrow": ["costl.metrics.output"],
    "gradio": ["costl.demo"],
    "jinja2": ["costl.plots"],
}
# The rooms that load torch when they are imported. Every other module imports it in the function that needs it.
TORCH_ROOMS = [f"{P}.{room}" for room in ("bench", "encode", "run.encoder_thread")]
TORCH_ROOMS += [f"costl.{room}" for room in ("bench", "model", "predict", "training", "train", "ask.trained_model")]
TORCH_ROOMS += [f"costl.data.{module}" for module in ("batch", "loader", "pseudo_labels", "sampler", "splice", "targets")]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace("pipeline", P, 1).removesuffix(".__init__"): path
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "costl").rglob("*.py")]
}


def nodes(node: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """Every node; with `at_import` without those in functions and under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if not (at_import and (in_function or for_types)):
            yield child
            yield from nodes(child, at_import=at_import)


@functools.cache
def imports(*, at_import: bool = False) -> list[tuple[str, str]]:
    """(module, what it imports) for every import of ours."""
    pairs = []
    for module, path in FILES.items():
        for node in nodes(ast.parse(path.read_text(encoding="utf-8")), at_import=at_import):
            if isinstance(node, ast.Import):
                pairs += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                pairs += [(module, name if name in FILES else str(node.module)) for name in whole]
    return pairs


def within(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def test_stage_one_never_imports_stage_two():
    assert not [(a, b) for a, b in imports() if within(a, P) and within(b, "costl") and not within(b, P)]


def test_stage_two_reaches_stage_one_through_its_doors():
    doors = {a: [door for room, more in VIDEO_DOORS.items() if within(a, room) for door in more] for a in FILES}
    outside = [(a, b) for a, b in imports() if within(b, P) and not within(a, P, "costl.bench")]
    assert not [(a, b) for a, b in outside if not within(b, *DOORS, *doors[a])]


def test_nothing_imports_the_command_line():
    users = {a for a, b in imports() if within(b, "costl.commands")}
    assert not {a for a in users if not within(a, "costl.commands", "costl.__main__")}


def test_at_most_three_modules_import_evaluate():
    assert len({a for a, b in imports() if b == "costl.evaluate" and not within(a, "costl.deprecated")}) <= 3


def test_models_meet_no_data_and_only_build_meets_the_config():
    assert not [b for a, b in imports(at_import=True) if within(a, "costl.model") and within(b, "costl.data", f"{P}.cache")]
    assert {a for a, b in imports() if within(a, "costl.model") and b == "costl.config"} <= {"costl.model.build"}


def test_metrics_meet_no_model():
    assert not [b for a, b in imports() if within(a, "costl.metrics") and within(b, "torch", "costl.model")]


@pytest.mark.parametrize("libraries", LIBRARY_ROOMS)
def test_a_library_is_imported_in_its_own_rooms(libraries):
    assert not {a for a, b in imports() if within(b, *libraries.split()) and not within(a, *LIBRARY_ROOMS[libraries])}


def test_torch_is_loaded_by_its_own_rooms():
    assert not {a for a, b in imports(at_import=True) if within(b, "torch") and not within(a, *TORCH_ROOMS)}


def test_no_room_has_more_than_fifteen_files():
    assert not {room for room in {path.parent for path in FILES.values()} if len([*room.glob("[!_]*.py")]) > 15}


def test_the_help_loads_nothing_heavy():
    loaded = {"costl.commands"}
    while more := {b for a, b in imports(at_import=True) if a in loaded and b in FILES} - loaded:
        loaded |= more
    libraries = {b.split(".")[0] for a, b in imports(at_import=True) if a in loaded}
    assert libraries <= {"click", "tqdm", "costl", *sys.stdlib_module_names}

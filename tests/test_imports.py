"""The module map as a test: who may import what, read from the source, not from a running program."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every module of the project and the libraries beyond Python's own that it may import, wherever in its text.
# A new module gets a row here: what it owns decides what it may know.
MODULES = {
    "cli": "click tqdm",
    "pipeline.errors": "",
    "pipeline.grid": "numpy",
    "pipeline.progress": "",
    "pipeline.features": "numpy",
    "pipeline.fingerprint": "",
    "pipeline.videos": "",
    "pipeline.editlist": "",
    "pipeline.how": "",
    "pipeline.frames": "numpy",
    "pipeline.packets": "av numpy",
    "pipeline.decord_video": "decord numpy",
    "pipeline.av_video": "av numpy",
    "pipeline.torchcodec_video": "torchcodec numpy",
    "pipeline.decoders": "av numpy",
    "pipeline.similarity": "numpy",
    "pipeline.decoding": "numpy",
    "pipeline.workers": "numpy",
    "pipeline.resize": "torch jaxtyping",
    "pipeline.weights": "torch open_clip huggingface_hub",
    "pipeline.clip": "torch open_clip numpy jaxtyping",
    "pipeline.object_header": "",
    "pipeline.hdf5": "h5py numpy",
    "pipeline.forms": "",
    "pipeline.quantise": "numpy",
    "pipeline.bench_cache": "numpy",
    "pipeline.parts": "h5py numpy",
    "pipeline.index": "h5py",
    "pipeline.words": "numpy",
    "pipeline.cache": "h5py numpy",
    "pipeline.foreign": "",
    "pipeline.plain_yaml": "yaml",
    "pipeline.settings": "",
    "pipeline.packed": "numpy",
    "pipeline.pack": "numpy",
    "pipeline.leftovers": "",
    "pipeline.inspected": "",
    "pipeline.inspecting": "numpy",
    "pipeline.verify": "",
    "pipeline.status": "",
    "pipeline.packing": "numpy torch jaxtyping",
    "pipeline.thumbnails": "numpy PIL",
    "pipeline.meter": "",
    "pipeline.history": "",
    "pipeline.device": "numpy torch",
    "pipeline.saving": "",
    "pipeline.effort": "",
    "pipeline.encoding": "",
    "pipeline.station": "distributed",
    "pipeline.cluster": "joblib distributed",
    "pipeline.shards": "",
    "pipeline.merge": "",
    "pipeline.extract": "",
    "pipeline.additions": "",
    "pipeline.published": "numpy",
    "pipeline.published_text": "numpy",
    "pipeline.survey": "",
    "pipeline.importing": "numpy",
    "pipeline.kept": "",
    "pipeline.cut": "av numpy",
    "pipeline.world": "numpy",
    "pipeline.story": "numpy",
    "pipeline.sample": "av joblib numpy",
    "pipeline.measure": "",
    "pipeline.bench_clips": "av joblib numpy",
    "pipeline.plain_decode": "av decord numpy torchcodec",
    "pipeline.bench_decode": "numpy",
    "pipeline.halves": "torch",
    "pipeline.imitated": "torch numpy jaxtyping",
    "pipeline.plain_extract": "decord numpy torch open_clip PIL",
    "pipeline.bench_memory": "",
    "pipeline.race": "",
    "pipeline.bench_extract": "torch numpy open_clip",
    "costl.files": "",
    "costl.launch": "",
    "costl.ranks": "torch",
    "costl.config": "",
    "costl.layers": "",
    "costl.annotations": "",
    "costl.moments": "numpy",
    "costl.highlights": "numpy",
    "costl.checks": "",
    "costl.benchmarks.common": "",
    "costl.benchmarks.qvhighlights": "",
    "costl.benchmarks.charades": "",
    "costl.benchmarks.tacos": "",
    "costl.benchmarks.tvsum": "",
    "costl.benchmarks.youtube_highlights": "",
    "costl.benchmarks.layouts": "",
    "costl.prepare": "",
    "costl.metrics": "numpy",
    "costl.intervals": "numpy",
    "costl.scoring": "",
    "costl.compare": "numpy",
    "costl.bench": "numpy",
    "costl.submission": "",
    "costl.rounding": "",
    "costl.tables": "",
    "costl.export": "pyarrow",
    "costl.pictures": "numpy matplotlib",
    "costl.shots": "numpy PIL",
    "costl.checkpoint": "torch safetensors",
    "costl.dataset": "torch numpy jaxtyping",
    "costl.usable": "",
    "costl.loader": "torch numpy",
    "costl.numerics": "torch",
    "costl.compiling": "torch",
    "costl.signals": "",
    "costl.board": "torch tensorboard",
    "costl.spans": "torch jaxtyping",
    "costl.losses": "torch jaxtyping",
    "costl.objective": "torch jaxtyping",
    "costl.predict": "torch numpy jaxtyping",
    "costl.windows": "torch numpy jaxtyping",
    "costl.model.tokens": "torch jaxtyping",
    "costl.model.match": "torch jaxtyping",
    "costl.model.spatial": "torch jaxtyping",
    "costl.model.temporal": "torch jaxtyping",
    "costl.model.heads": "torch jaxtyping",
    "costl.model.costl": "torch jaxtyping",
    "costl.model.baselines": "torch jaxtyping",
    "costl.model.adapter": "torch jaxtyping",
    "costl.model.build": "torch",
    "costl.model.rivals": "torch jaxtyping",
    "costl.shares": "torch numpy jaxtyping",
    "costl.runs": "",
    "costl.state": "torch",
    "costl.pace": "",
    "costl.trainable": "torch",
    "costl.train": "torch numpy jaxtyping",
    "costl.evaluate": "torch numpy jaxtyping",
    "costl.explain": "torch numpy jaxtyping",
    "costl.report_items": "numpy",
    "costl.report_charts": "",
    "costl.report_story": "numpy",
    "costl.report_page": "",
    "costl.report": "",
    "costl.references": "numpy",
    "costl.repeat": "numpy",
    "costl.truth": "numpy",
    "costl.reading": "numpy",
    "costl.diagnose": "numpy",
    "costl.variants": "",
    "costl.ablation": "numpy",
    "costl.ablate": "joblib torch",
    "costl.quickstart": "",
    "costl.bench_index": "numpy torch",
    "costl.train_race": "",
    "costl.bench_train": "torch",
    "costl.trained": "torch safetensors",
    "costl.card": "",
    "costl.share": "safetensors huggingface_hub",
    "costl.answers": "",
    "costl.text": "",
    "costl.queries": "",
    "costl.telling": "",
    "costl.demo_page": "numpy matplotlib",
    "costl.desk": "numpy",
    "costl.demo": "gradio fastapi starlette uvicorn",
    "costl.drawing": "matplotlib",
    "costl.picture": "numpy matplotlib",
    "costl.ask": "numpy",
}

# What stage two may know of stage one; `ask` and `quickstart` are the bridges, and pictures show the videos themselves.
DOORS = {"pipeline.cache", "pipeline.errors", "pipeline.fingerprint", "pipeline.grid", "pipeline.progress"}
DOORS |= {"pipeline.foreign", "pipeline.plain_yaml"}  # both read settings and rows, and must read them alike
EXTRA_DOORS = {
    "costl.shots": {"pipeline.thumbnails"},
    "costl.report_story": {"pipeline.thumbnails"},
    "costl.report_page": {"pipeline.thumbnails"},
    "costl.ask": {"pipeline.extract", "pipeline.kept"},
    "costl.picture": {"pipeline.cut"},
    "costl.telling": {"pipeline.cut"},
    "costl.desk": {"pipeline.cut", "pipeline.videos"},
    "costl.quickstart": {"pipeline.extract", "pipeline.sample"},
    # Annotations must name the videos that are there, and some take their durations from nowhere else.
    "costl.prepare": {"pipeline.videos", "pipeline.decoders"},
}

# Parts of the project that a module must not import itself (a package stands for all that is in it).
NEVER = {
    "costl.dataset": "costl.model",
    "costl.loader": "costl.model costl.config",
    "costl.pace": "costl.model costl.train",
    "costl.trainable": "costl.train",
    "costl.numerics": "costl.model costl.config",
    "costl.compiling": "costl.config costl.train",
    "costl.board": "costl.model",
    "costl.spans": "costl pipeline",
    "costl.losses": "costl.model costl.dataset costl.config",
    "costl.predict": "costl.model costl.metrics",
    "costl.moments": "costl.spans costl.model",
    "costl.highlights": "costl.spans costl.model",
    "costl.windows": "costl.model costl.metrics costl.config",
    "costl.metrics": "costl.spans costl.model",
    "costl.benchmarks.common": "costl.config costl.prepare",
    "costl.benchmarks.layouts": "costl.config costl.prepare",
    "costl.prepare": "costl.model costl.dataset costl.metrics",
    "costl.checkpoint": "costl.model costl.dataset",
    "costl.trained": "costl.dataset costl.evaluate costl.train",
    "costl.share": "costl.dataset costl.evaluate costl.train",
    "costl.answers": "costl.model costl.dataset costl.evaluate",
    "costl.picture": "costl.model costl.dataset costl.evaluate",
    "costl.ask": "costl.train",
    "costl.export": "costl.model",
    "costl.pictures": "costl.model",
    "costl.evaluate": "costl.train costl.references",
    "costl.runs": "costl.model costl.dataset costl.train costl.evaluate",
    "costl.objective": "costl.metrics costl.train",
    "costl.references": "costl.train costl.model",
    "costl.truth": "costl.model costl.train",
    "costl.reading": "costl pipeline",
    "costl.diagnose": "costl.train",
    "costl.variants": "costl.model costl.train",
    "costl.ablation": "costl.model costl.train costl.config",
    "costl.model.tokens": "costl.config costl.dataset costl.metrics",
    "costl.model.match": "costl.config costl.dataset costl.metrics",
    "costl.model.spatial": "costl.config costl.dataset costl.metrics",
    "costl.model.temporal": "costl.config costl.dataset costl.metrics",
    "costl.model.heads": "costl.config costl.dataset costl.metrics",
    "costl.model.costl": "costl.dataset costl.metrics",
    "costl.model.baselines": "costl.config costl.dataset costl.metrics",
    "costl.model.adapter": "costl.config costl.dataset costl.metrics",
    "costl.model.build": "costl.dataset costl.metrics",
    "costl.model.rivals": "costl.config costl.dataset costl.metrics",
    "costl.ranks": "costl.model costl.dataset costl.config costl.train",
    "costl.shares": "costl.config costl.losses costl.train",
}

# Libraries that must not be loaded when a module is, not even by way of others: what --help, a decode process or a
# reader of metrics would otherwise wait for.
HEAVY = "torch open_clip decord h5py pyarrow matplotlib av"
NEVER_LOADED = {
    "cli": HEAVY,
    "pipeline.videos": HEAVY,
    "pipeline.frames": "torch h5py open_clip",
    "pipeline.workers": "torch h5py open_clip",
    "pipeline.clip": "decord h5py",
    "pipeline.station": f"{HEAVY} distributed",  # the scheduler reads it
    "pipeline.cluster": "torch decord open_clip distributed",
    "pipeline.merge": "torch decord open_clip",
    "pipeline.cache": "torch decord open_clip",
    "pipeline.additions": "decord av",
    "costl.launch": HEAVY,
    "costl.config": HEAVY,
    "costl.layers": HEAVY,
    "costl.annotations": HEAVY,
    "costl.moments": HEAVY,
    "costl.highlights": HEAVY,
    "costl.benchmarks.common": HEAVY,
    "costl.benchmarks.layouts": HEAVY,  # and with it every reader
    "costl.prepare": HEAVY,
    "costl.metrics": HEAVY,
    "costl.scoring": HEAVY,
    "costl.compare": HEAVY,
    "costl.reading": HEAVY,
    "costl.variants": HEAVY,
    "costl.ablation": HEAVY,
    "costl.bench": HEAVY,
    "costl.train_race": HEAVY,
    "costl.submission": "decord open_clip matplotlib",
    "costl.tables": HEAVY,
    "costl.export": HEAVY,
    "costl.pictures": "torch open_clip decord h5py matplotlib",
    "costl.answers": HEAVY,
    "costl.queries": HEAVY,
    "costl.card": HEAVY,
    "costl.drawing": HEAVY,
    "costl.picture": HEAVY,
    "costl.dataset": "decord open_clip",
    "costl.model.costl": "h5py decord open_clip",
    "costl.predict": "h5py decord open_clip",
    "costl.windows": "decord open_clip",
    "costl.runs": "torch decord open_clip matplotlib",
    "costl.train": "decord open_clip matplotlib",
    "costl.evaluate": "decord open_clip matplotlib",
}


def module_files() -> dict[str, Path]:
    files = [ROOT / "cli.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "costl").rglob("*.py")]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in sorted(files)
        if file.name != "__init__.py" and file.is_file()
    }


FILES = module_files()
here = pytest.mark.parametrize("module", FILES)


def imports(module: str, *, when_loaded: bool = False) -> set[str]:
    """What a module imports: dotted names of ours, first names of libraries; `when_loaded` leaves out what waits
    inside a function or is there for types alone."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return {name for node in nodes(tree, when_loaded=when_loaded) for name in names(node, module)}


def nodes(node: ast.AST, *, when_loaded: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if when_loaded and (later or for_types):
            continue
        yield child
        yield from nodes(child, when_loaded=when_loaded)


def names(node: ast.AST, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (own_or_library(alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*package, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            yield whole if whole in FILES else own_or_library(source)


def own_or_library(name: str) -> str:
    first = name.split(".")[0]
    return name if first in ("pipeline", "costl", "cli") else first


def libraries(found: set[str]) -> set[str]:
    return {name for name in found if name not in sys.stdlib_module_names and name.split(".")[0] not in OWN}


OWN = ("pipeline", "costl", "cli")


def within(name: str, parts: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts.split())


def test_every_module_has_a_row_in_the_table():
    missing = sorted(set(FILES) - set(MODULES))
    assert not missing, f"{missing} not in MODULES: add a row with the libraries that each may import."


@here
def test_a_module_imports_only_the_libraries_its_row_allows(module):
    assert libraries(imports(module)) <= set(MODULES.get(module, "").split())


@here
def test_stage_one_never_knows_stage_two_and_nobody_knows_the_command_line(module):
    found = imports(module)
    assert not any(within(name, "cli") for name in found)
    if module.startswith("pipeline."):
        assert not any(within(name, "costl") for name in found)


@here
def test_stage_two_meets_stage_one_only_at_its_doors(module):
    if module.startswith("costl."):
        used = {name for name in imports(module) if within(name, "pipeline")}
        assert used <= DOORS | EXTRA_DOORS.get(module, set())


def test_only_the_command_line_imports_click():
    assert {module for module in FILES if "click" in imports(module)} <= {"cli"}


@here
def test_a_module_never_imports_what_its_row_forbids(module):
    assert not [name for name in imports(module) if within(name, NEVER.get(module, ""))]


@here
def test_loading_a_module_loads_none_of_the_libraries_it_must_not(module):
    loaded, waiting = set(), [module]
    while waiting:
        for name in imports(waiting.pop(), when_loaded=True) - loaded:
            loaded.add(name)
            waiting += [name] if name in FILES else []
    assert not loaded & set(NEVER_LOADED.get(module, "").split())


def test_there_is_no_cycle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in FILES and module not in done:
            for name in sorted(imports(module)):
                visit(name, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


def test_the_reader_of_imports_sees_every_kind(tmp_path, monkeypatch):
    text = (
        "import torch.nn as nn, json\nfrom pipeline import grid\nfrom . import spans\nfrom .metrics import x\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import matplotlib\n"
        "def f():\n    from costl.config import Config\n    import decord\n"
    )
    (tmp_path / "losses.py").write_text(text)
    fake = dict.fromkeys(["pipeline.grid", "costl.spans", "costl.metrics"], tmp_path) | {
        "costl.losses": tmp_path / "losses.py"
    }
    monkeypatch.setattr(sys.modules[__name__], "FILES", fake)
    loaded = {"torch", "json", "typing", "pipeline.grid", "costl.spans", "costl.metrics"}
    assert imports("costl.losses", when_loaded=True) == loaded
    assert imports("costl.losses") == loaded | {"matplotlib", "decord", "costl.config"}
    assert libraries(imports("costl.losses")) == {"torch", "matplotlib", "decord"}

"""The list of benchmarks, and which layout of a benchmark a folder has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from costl.benchmarks.charades import CHARADES
from costl.benchmarks.common import Benchmark, Layout
from costl.benchmarks.qvhighlights import QVHIGHLIGHTS
from costl.benchmarks.tacos import TACOS
from costl.benchmarks.tvsum import TVSUM
from costl.benchmarks.youtube_highlights import YOUTUBE_HIGHLIGHTS
from costl.pipeline.errors import UsageError, VideoError, first_few

BENCHMARKS = {benchmark.name: benchmark for benchmark in (QVHIGHLIGHTS, CHARADES, TACOS, TVSUM, YOUTUBE_HIGHLIGHTS)}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises UsageError with the nearest name."""
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Expected one of {', '.join(BENCHMARKS)}."
        raise UsageError(f"{name!r} is not a known benchmark. {hint}")
    return BENCHMARKS[name]


def find_layout(benchmark: Benchmark, path: Path) -> tuple[Layout, dict[str, Path]]:
    """The first layout whose files are all in the folder `path`, and the path of each file. `path` may also be one of the
    files, to choose among several layouts in a folder.

    Raises UsageError that lists the expected files and those in the folder.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such folder. Pass the folder that holds the annotations of {benchmark.title}.")
    match = _match_layout(benchmark, path)
    if match is None:
        folder = path if path.is_dir() else path.parent
        expected = "; or ".join(_file_names(layout) for layout in benchmark.layouts)
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
        other = next((b for b in BENCHMARKS.values() if b is not benchmark and _can_read(b, path)), None)
        hint = f" This looks like {other.title}: costl prepare {other.name}." if other else ""
        content = f"found {first_few(names)}" if names else "the folder is empty"
        raise UsageError(f"{path}: no annotations of {benchmark.title}: looked for {expected}; {content}.{hint}")
    return match


def _match_layout(benchmark: Benchmark, path: Path) -> tuple[Layout, dict[str, Path]] | None:
    folder = path if path.is_dir() else path.parent
    for layout in benchmark.layouts:
        files = {part: file for part, names in layout.files.items() for file in _first_file(folder, names)}
        extras = {part: file for part, names in layout.extras.items() for file in _first_file(folder, names)}
        if len(files) == len(layout.files) and (path == folder or path in files.values()):
            return layout, files | extras
    return None


def _first_file(folder: Path, names: Iterable[str]) -> list[Path]:
    """The first of the names that is a file, in a list that is empty if none is."""
    return [folder / name for name in names if (folder / name).is_file()][:1]


def _can_read(benchmark: Benchmark, path: Path) -> bool:
    # Several benchmarks use names such as train.jsonl, so that the content must decide.
    def unknown_duration(vid: str) -> float:
        raise VideoError(f"{vid}: its video was not looked up.")

    match = _match_layout(benchmark, path)
    try:
        return match is not None and bool(match[0].read(match[1], unknown_duration))
    except UsageError:
        return False


def _file_names(layout: Layout) -> str:
    return " with ".join(names[0] if len(names) == 1 else f"({' or '.join(names)})" for names in layout.files.values())

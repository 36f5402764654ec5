"""The list of benchmarks, and which layout of a benchmark a folder has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from costl.benchmarks.charades import CHARADES
from costl.benchmarks.common import Benchmark, Layout
from costl.benchmarks.qvhighlights import QVHIGHLIGHTS
from costl.benchmarks.tacos import TACOS
from costl.benchmarks.tvsum import TVSUM
from costl.benchmarks.youtube_highlights import YOUTUBE_HIGHLIGHTS
from costl.pipeline.errors import UsageError, first_few

BENCHMARKS = {benchmark.name: benchmark for benchmark in (QVHIGHLIGHTS, CHARADES, TACOS, TVSUM, YOUTUBE_HIGHLIGHTS)}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises UsageError for an unknown name."""
    if name not in BENCHMARKS:
        raise UsageError(f"{name!r} is not a known benchmark. Expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def find_layout(benchmark: Benchmark, path: Path) -> tuple[Layout, dict[str, Path]]:
    """The first layout whose files are all in the folder `path`, and the path of each file. `path` may also be one of the
    files, to choose among several layouts in a folder.

    Raises UsageError that lists the expected files and those in the folder.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such folder. Pass the folder that holds the annotations of {benchmark.title}.")
    folder = path if path.is_dir() else path.parent
    for layout in benchmark.layouts:
        files = _existing(folder, layout.files)
        if len(files) == len(layout.files) and (path == folder or path in files.values()):
            return layout, files | _existing(folder, layout.extras)
    expected = "; or ".join(_file_names(layout) for layout in benchmark.layouts)
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    content = f"found {first_few(names)}" if names else "the folder is empty"
    raise UsageError(f"{path}: no annotations of {benchmark.title}: looked for {expected}; {content}.")


def _existing(folder: Path, names_by_part: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The first file of each part that the folder has."""
    paths = {part: [folder / name for name in names] for part, names in names_by_part.items()}
    return {part: path for part, options in paths.items() for path in [p for p in options if p.is_file()][:1]}


def _file_names(layout: Layout) -> str:
    return " with ".join(names[0] if len(names) == 1 else f"({' or '.join(names)})" for names in layout.files.values())

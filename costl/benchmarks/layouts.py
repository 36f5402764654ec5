"""Which benchmarks there are, and in which of their layouts a folder holds one."""

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
from costl.pipeline.errors import UsageError, VideoError, some

BENCHMARKS = {benchmark.name: benchmark for benchmark in (QVHIGHLIGHTS, CHARADES, TACOS, TVSUM, YOUTUBE_HIGHLIGHTS)}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises UsageError with the nearest one."""
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Expected one of {', '.join(BENCHMARKS)}."
        raise UsageError(f"{name!r} is no benchmark that is known. {hint}")
    return BENCHMARKS[name]


def find_layout(benchmark: Benchmark, place: Path) -> tuple[Layout, dict[str, Path]]:
    """The first layout whose files all lie in the folder `place` (or of which `place` is one), and where each part is.

    Raises UsageError that says what was looked for and what was found.
    """
    if not place.exists():
        raise UsageError(f"{place}: no such folder. Pass the folder that holds the annotations of {benchmark.title}.")
    fitting = _fitting(benchmark, place)
    if fitting is None:
        folder = place if place.is_dir() else place.parent
        looked_for = "; or ".join(_in_words(layout) for layout in benchmark.layouts)
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
        other = next((b for b in BENCHMARKS.values() if b is not benchmark and _reads(b, place)), None)
        hint = f" This looks like {other.title}: costl prepare {other.name}." if other else ""
        here = f"found {some(names)}" if names else "the folder is empty"
        raise UsageError(f"{place}: no annotations of {benchmark.title}: looked for {looked_for}; {here}.{hint}")
    return fitting


def _fitting(benchmark: Benchmark, place: Path) -> tuple[Layout, dict[str, Path]] | None:
    folder = place if place.is_dir() else place.parent
    for layout in benchmark.layouts:
        files = {part: path for part, names in layout.files.items() for path in _first(folder, names)}
        extras = {part: path for part, names in layout.extras.items() for path in _first(folder, names)}
        if len(files) == len(layout.files) and (place == folder or place in files.values()):
            return layout, files | extras
    return None


def _first(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()][:1]


def _reads(benchmark: Benchmark, place: Path) -> bool:
    # Names such as train.jsonl are anybody's: only reading tells.
    def unknown(vid: str) -> float:
        raise VideoError(f"{vid}: not looked for.")

    fitting = _fitting(benchmark, place)
    try:
        return fitting is not None and bool(fitting[0].read(fitting[1], unknown))
    except UsageError:
        return False


def _in_words(layout: Layout) -> str:
    return " with ".join(names[0] if len(names) == 1 else f"({' or '.join(names)})" for names in layout.files.values())

"""Peak memory of an extraction and its processes, for longer videos and for more videos. It must not grow with either."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from costl.pipeline.bench.measure import peak_memory
from costl.pipeline.bench.videos import MEMORY_VIDEO, link_copies, render_video, repeat_video
from costl.pipeline.formats.table import table
from costl.pipeline.progress import Progress, ProgressCallback
from costl.pipeline.videos import find_videos
from costl.pipeline.world.write_world import TINY_CLIP

LONGER = 20
FEW, MANY = 4, 16  # videos
_ROOT = Path(__file__).parents[2]

# Runs in its own process with the small CLIP: anything else in memory would hide the growth.
_EXTRACT_SCRIPT = """
import sys
from pathlib import Path
from costl.pipeline.extract import extract
videos, out, weights, fps, decoder = sys.argv[1:]
report = extract(Path(videos), out=Path(out), annotations={}, weights=weights, fps=float(fps), device="cpu",
                 decoder=decoder, workers=2)
sys.exit("; ".join(row.reason for row in report.failed) or None)
"""


def bench_memory(*, decoder: str, report_progress: ProgressCallback) -> list[str]:
    """The table of four extractions at 2 fps: of a video, of one that repeats it, and of few and many copies of the video."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        short = root / "short" / "video.mp4"
        render_video(MEMORY_VIDEO, short)
        (root / "long").mkdir()
        repeat_video(short, root / "long" / "video.mp4", LONGER)
        link_copies(find_videos(short.parent), FEW, root / "few")
        link_copies(find_videos(short.parent), MANY, root / "many")
        peaks = {}
        for number, name in enumerate(("short", "long", "few", "many")):
            report_progress(Progress("memory", number, 4, name))
            peaks[name] = extraction_memory(root / name, root / "out" / name, fps=2.0, decoder=decoder)
        report_progress(Progress("memory", 4, 4))
    cases = {f"one video, then {LONGER} times as long": ("short", "long"), f"{FEW} videos, then {MANY}": ("few", "many")}
    rows = [
        (name, f"{peaks[less] / 1e6:.0f}", f"{peaks[more] / 1e6:.0f}", f"{peaks[more] / peaks[less]:.2f}")
        for name, (less, more) in cases.items()
    ]
    return table(["peak memory of all processes, MB", "less", "more", "ratio"], rows)


def extraction_memory(videos: Path, out: Path, *, fps: float, decoder: str) -> float:
    """Peak memory in bytes of extracting a folder to the cache `out`/feats.h5 with the small CLIP and two processes."""
    arguments = [str(videos), str(out / "feats.h5"), str(TINY_CLIP), str(fps), decoder]
    return peak_memory([sys.executable, "-c", _EXTRACT_SCRIPT, *arguments], cwd=_ROOT)
